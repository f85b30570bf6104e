"""Reading checkpoint files that others made, or that a disk has spoiled."""

import argparse
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch

from .errors import CheckpointError

ADVICE = "if you trust where it comes from, say --trust-checkpoint"

# All that pickles of Detectron2's model zoo name: arrays, in plain containers.
_HARMLESS = {
    "_codecs": ("encode",),
    "builtins": ("bytearray", "complex", "frozenset", "set"),
    "collections": ("OrderedDict",),
    "numpy": ("dtype", "ndarray"),
}
_ARRAYS = ("_frombuffer", "_reconstruct", "scalar")  # of numpy's own modules, whatever their name


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """`--trust-checkpoint`, for commands that load checkpoints."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load checkpoints even where that executes code they carry; only for files whose "
        "origin you trust",
    )


def read_checkpoint(path: str | Path, *, trust: bool = False) -> Any:
    """What a checkpoint file holds, on the CPU.

    Files of torch.save are read with `weights_only`, pickles (.pkl) as far as they hold arrays and
    plain containers: neither can execute code. The checksums in a file are verified, which torch
    does not do.

    Args:
        trust: read it whatever it executes.

    Raises:
        CheckpointError: it is damaged, of another kind, or might execute code.
        OSError: it cannot be opened.
    """
    path = Path(path)
    with open(path, "rb") as file:
        return _read(file, path, trust)


def _read(file: IO[bytes], path: Path, trust: bool) -> Any:
    try:
        if path.suffix == ".pkl":
            return _read_pickle(file, trust)
        _verify(file)
        return torch.load(file, map_location="cpu", weights_only=not trust)
    except MemoryError:
        raise
    except _Refused as error:
        raise CheckpointError(f"{path} is refused: {error}; {ADVICE}") from error
    except Exception as error:  # whatever a file of another kind makes the readers raise
        what = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if isinstance(error, pickle.UnpicklingError) and what:
            message = f"{path} is refused: it may execute code ({what}); {ADVICE}"
            raise CheckpointError(message) from error
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's text is on its own options
            said = "it cannot be unpickled"
        raise CheckpointError(f"{path} is damaged or no checkpoint: {said:.200}") from error


class _Refused(Exception):
    pass


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        numpys = module.split(".")[0] == "numpy" and name in _ARRAYS
        if numpys or name in _HARMLESS.get(module, ()):
            return super().find_class(module, name)
        raise _Refused(f"it may execute code ({module}.{name})")


def _read_pickle(file: IO[bytes], trust: bool) -> Any:
    return (pickle.Unpickler if trust else _ArraysOnly)(file, encoding="latin1").load()


def _verify(file: IO[bytes]) -> None:
    """The CRC-32 of everything in a zip, as torch.save writes it; older files have none."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return
    with zipfile.ZipFile(file) as archive:
        try:
            damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"checksums do not fit ({error})") from error
    if damaged is not None:
        raise ValueError(f"checksums do not fit ({damaged})")
    file.seek(0)
