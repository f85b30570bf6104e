"""Read pickles of arrays, such as those of Detectron2's model zoo, without executing their code.

Everything that such a file may name is a stand-in of this module: neither pickle nor NumPy builds
an object from what the file says, and an array is made of its bytes only when its description has
been checked.
"""

import math
import mmap
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np

_NUMBERS = re.compile(r"[<>=|]?([?]|[biufc][0-9]{1,2})")  # the names of the allowed dtypes
_MODULES = ("numpy.core.multiarray", "numpy.core.numeric")  # of NumPy 1; NumPy 2 has numpy._core


class Refused(Exception):
    """The pickle names something that may execute code."""


class _DType:
    """Stand-in for `numpy.dtype`: numbers only, without fields, sub-arrays, metadata and flags."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if not (isinstance(name, str) and _NUMBERS.fullmatch(name)):
            raise ValueError(f"an array of {name!r:.40} is none of numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        version, order, *nothing = state
        sizes, flags = nothing[3:5], nothing[5:6]
        plain = nothing[:3] == [None] * 3 and sizes == [-1, -1] and flags in ([], [0])
        if version not in (1, 2, 3) or order not in ("<", ">", "|", "=") or not plain:
            raise ValueError("the type of an array is none of plain numbers")
        if nothing[6:]:
            raise ValueError("the type of an array carries metadata")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stand-in for `numpy.ndarray`; `array` is None until its state was read."""

    __hash__ = None  # type: ignore[assignment]  # as an array: so that none hides in a set

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.array = array

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote it so
    sizes = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    if not (sizes and isinstance(data, bytes | bytearray) and isinstance(dtype, _DType)):
        raise ValueError("the description of an array is damaged")
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError(f"an array of shape {shape} has {len(data)} bytes")
    if not data:
        return np.empty(shape, dtype.dtype)
    flat = np.frombuffer(data, dtype.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C").copy()


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(_array(data, dtype, shape, order))


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError(f"encoding {encoding!r:.40} is none of text")
    return text.encode(encoding)


def _bytes(*args: Any) -> bytes:
    if args and not isinstance(args[0], bytes | bytearray):  # a number would be a length
        raise ValueError("bytes are not made of bytes")
    return bytes(*args)


def _bytearray(*args: Any) -> bytearray:
    return bytearray(_bytes(*args))


_STAND_INS: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "bytes"): _bytes,
    ("builtins", "complex"): complex,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
}
for _module in _MODULES:
    for _name in (_module, _module.replace("core", "_core")):
        _STAND_INS[_name, "_reconstruct"] = _reconstruct
        _STAND_INS[_name, "_frombuffer"] = _frombuffer
        _STAND_INS[_name, "scalar"] = _scalar


# The reader that is written in Python: the one in C takes as much memory as the file claims.
_Python: Any = pickle._Unpickler


class _Reader(_Python):
    dispatch = dict(_Python.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("__builtin__", "builtins")  # as Python 2 calls it
        if (stand_in := _STAND_INS.get((module, name))) is None:
            raise Refused(f"it may execute code ({module}.{name})")
        return stand_in

    def load_build(self) -> None:
        # Else a file could give any object, these stand-ins themselves too, other attributes.
        if not isinstance(self.stack[-2], _DType | _Array):
            raise Refused(f"it may execute code (a state for {self.stack[-2]!r:.40})")
        super().load_build()

    def load_bytearray8(self) -> None:
        super().load_binbytes8()  # which reads no more than there is
        self.stack[-1] = bytearray(self.stack[-1])

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def read_arrays(content: IO[bytes] | mmap.mmap) -> Any:
    """Return what a pickle holds: arrays of numbers, and numbers and text, in plain containers.

    Args:
        content: in memory, or a map of the file: a read is as long as it claims to be elsewhere.

    Raises:
        Refused: it names anything else.
        Exception: of nearly any kind, for a damaged file.
    """
    return _unwrapped(_Reader(content, encoding="latin1").load(), set())


def _unwrapped(value: Any, seen: set[int]) -> Any:
    """Replace the stand-ins by what they stand for; lists and dictionaries in place."""
    if isinstance(value, _Array):
        if value.array is None:
            raise ValueError("an array has no content")
        return value.array
    if isinstance(value, _DType):
        return value.dtype
    if isinstance(value, tuple):
        return tuple(_unwrapped(item, seen) for item in value)
    if isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _unwrapped(item, seen)
    return value
