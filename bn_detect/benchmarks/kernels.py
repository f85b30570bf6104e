"""Compile the Triton kernels for GPUs that are not at hand: registers, spills, bytes to move.

Triton and its assembler compile for any NVIDIA GPU without one. The times are those in which
the bytes that a kernel must move pass at the bandwidth that the card's maker states: a bound from
below, not a measurement.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

HELP = "the GPU kernels, compiled for cards that need not be there"
# compute capability -> card, bytes per second of its memory as its maker states them
CARDS = {
    70: ("V100", 0.9e12),
    80: ("A100 80 GB", 2.039e12),
    90: ("H100 SXM", 3.35e12),
    100: ("B200", 8e12),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = ((1024, 256, 7, 7), (512, 256, 14, 14))
GROUPS = 8
FLAGS = ("SPANS", "HAS_WEIGHT", "HAS_POPULATION", "HAS_BIAS", "KEEP_SINGLE")

# Types of the kernels' pointers by name; what differs in one kernel is below.
_POINTERS = {
    **dict.fromkeys(("x", "y", "dy", "dx"), "x"),
    **dict.fromkeys(
        ("mean", "var", "center", "invstd", "scale", "weight", "bias", "gradient", "like")
        + ("pop_mean", "pop_var", "running_mean", "running_var", "dweight", "dbias"),
        "accurate",
    ),
    **dict.fromkeys(
        ("out", "moments", "packed", "values", "local", "total", "usable", "step"), "*fp64"
    ),
    **dict.fromkeys(("group", "order", "starts", "sizes", "count", "batches"), "*i64"),
    "finite": "*i1",
}
_UNIT_STRIDES = {False: ("sp", "yp", "dp", "gp"), True: ("sc", "yc", "dc", "gc")}
_OTHERS = {("gradient_coefficients", "out"): "accurate", ("begin_update", "weight"): "*fp64"}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one compute capability.

    Attributes:
        registers: of each thread.
        stack: bytes of each thread in local memory, which is where registers are spilled to.
        shared: bytes of shared memory of a program.
    """

    kernel: str
    target: int
    dtype: str
    channels_last: bool
    registers: int
    stack: int
    shared: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--targets", type=int, nargs="+", choices=CARDS, default=list(CARDS), help="capabilities"
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the features"
    )


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Compile everything; return the tables and all numbers.

    Raises:
        ValueError: Triton is not installed.
    """
    try:
        import triton  # noqa: F401
    except ImportError:
        raise ValueError("Triton is not installed; it comes with PyTorch for NVIDIA GPUs") from None
    rows = [
        row
        for target in args.targets
        for dtype in args.dtypes
        for row in compile_kernels(target, DTYPES[dtype])
    ]
    times = [
        {"kernel": kernel, "shape": shape, "dtype": dtype, "bytes": number}
        for shape in SHAPES
        for dtype in args.dtypes
        for kernel, number in bytes_moved(shape, DTYPES[dtype].itemsize).items()
    ]
    text = f"{_compiled_table(rows)}\n\n{_bytes_table(times, args.targets)}"
    return text, {"compiled": [asdict(row) for row in rows], "bytes": times}


def compile_kernels(target: int, dtype: torch.dtype) -> Iterator[Compiled]:
    """Compile each kernel for a compute capability, in the tile shapes that `SHAPES` use."""
    import triton

    from ..layers.steps import triton_kernels as kernels

    for name, kernel in vars(kernels).items():
        if not isinstance(kernel, triton.runtime.JITFunction):
            continue
        over_rois = "BLOCK_P" in kernel.arg_names
        for channels_last in (False, True) if over_rois else (False,):
            tiles = {tuple(_constants(kernel, s, dtype, channels_last).items()) for s in SHAPES}
            results = [
                _compile(kernel, dict(tile), dtype, target) for tile in sorted(tiles, key=str)
            ]
            registers, stack, shared = (max(numbers) for numbers in zip(*results, strict=True))
            name_of_dtype = str(dtype).removeprefix("torch.")
            yield Compiled(name, target, name_of_dtype, channels_last, registers, stack, shared)


def bytes_moved(shape: tuple[int, ...], itemsize: int) -> dict[str, int]:
    """Return the bytes that each kernel reads and writes for x of a shape, in `GROUPS` groups."""
    rois, channels, *positions = shape
    x = rois * channels * torch.Size(positions).numel() * itemsize
    sums = 2 * rois * channels * 8
    table = GROUPS * channels * 4
    return {
        "roi_moments": x + sums,
        "merge_moments": 2 * sums + 2 * table,  # two passes: the mean, and squares about it
        "unpack_moments": 6 * table,
        "coefficients": 4 * table,
        "normalize": 2 * x + 2 * table,
        "gradient_sums": 2 * x + sums,
        "segment_sum": sums + 4 * table,
        "gradient_coefficients": 12 * table,
        "input_gradient": 3 * x + 4 * table,
        "begin_update": 2 * table,
        "finish_update": 2 * table,
    }


def _constants(
    kernel: Any, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> dict[str, Any]:
    """Return the constants with which the layer launches a kernel, with everything switched on."""
    import triton.language as tl

    from ..layers.steps import triton_ops

    values: dict[str, Any] = dict.fromkeys(FLAGS, True)
    values |= {"EPS": 1e-5, "MOMENTUM": 0.1, "CUMULATIVE": False}
    if "BLOCK_P" in kernel.arg_names:
        values["ACC"] = tl.float64 if dtype == torch.float64 else tl.float32
        positions = torch.Size(shape[2:]).numel()
        tile = triton_ops.tile(shape[1], positions, channels_last)
        values["BLOCK_C"], values["BLOCK_P"] = tile
        values |= dict.fromkeys(_UNIT_STRIDES[channels_last], 1)  # Triton makes 1 a constant
    elif "BLOCK_R" in kernel.arg_names:
        values |= triton_ops.ROWS_TILE
    elif "BLOCK_G" in kernel.arg_names:
        values |= triton_ops.TABLE_TILE
    else:
        values |= triton_ops.GROUP_TILE
    return {name: values[name] for name in kernel.arg_names if name in values}


def _compile(
    kernel: Any, constants: dict[str, Any], dtype: torch.dtype, target: int
) -> tuple[int, int, int]:
    """Return registers and stack bytes of a thread, and shared memory of a program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kind = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
    name = kernel.__name__
    signature = {}
    for argument in kernel.arg_names:
        pointer = _OTHERS.get((name, argument), _POINTERS.get(argument, "i32"))
        pointer = {"x": kind, "accurate": "*fp32"}.get(pointer, pointer)
        signature[argument] = "constexpr" if argument in constants else pointer
    # Memory is aligned, and these are multiples of 16, which Triton finds out at a launch.
    even = [
        (index,)
        for index, argument in enumerate(kernel.arg_names)
        if signature[argument].startswith("*") or argument in ("C", "sr", "yr", "dr", "gr")
    ]
    attributes = {index: [["tt.divisibility", 16]] for index in even}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32))
    registers, stack = _resources(compiled.asm["cubin"])
    return registers, stack, compiled.metadata.shared


def _resources(cubin: bytes) -> tuple[int, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _compiled_table(rows: list[Compiled]) -> str:
    headers = ["kernel", "card", "features", "memory", "registers", "spilled, B", "shared, B"]
    lines = [
        [
            row.kernel,
            f"{CARDS[row.target][0]} (sm_{row.target})",
            row.dtype,
            "channels_last" if row.channels_last else "contiguous",
            row.registers,
            row.stack,
            row.shared,
        ]
        for row in rows
    ]
    return tabulate(lines, headers, tablefmt="github")


def _bytes_table(times: list[dict[str, Any]], targets: list[int]) -> str:
    headers = ["kernel", "x", "features", "MB moved", *(f"{CARDS[t][0]}, us" for t in targets)]
    lines = [
        [
            row["kernel"],
            "x".join(map(str, row["shape"])),
            row["dtype"],
            f"{row['bytes'] / 1e6:.3g}",
            *(f"{1e6 * row['bytes'] / CARDS[t][1]:.3g}" for t in targets),
        ]
        for row in times
    ]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)
