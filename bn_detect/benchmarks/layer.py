"""RoIBatchNorm2d by itself against torch's layers: time and memory of forward and backward."""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..layers import NormalizationBatch, RoIBatchNorm2d, RoILayout
from .measuring import (
    default_device,
    interleaved,
    peak_bytes,
    ratios,
    spread,
    threads,
    waiting_for,
)
from .subjects import REFERENCE, layers_of_others

HELP = "the layer against torch's, one process"
SHAPES = ((512, 256, 7, 7), (1024, 256, 7, 7), (256, 256, 14, 14))
LARGE = (1024, 256, 14, 14)  # where bandwidth decides, on a GPU
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGES, WORKERS = 16, 8  # per step and virtual; RoIs are spread over them evenly
PASSES = 7  # x or dy read, y or dx written: forward reads x twice, backward x and dy twice


@dataclass(frozen=True)
class Row:
    """One layer on one input.

    Attributes:
        ms: forward and backward, each repetition.
        ratio: to torch's BatchNorm2d, each repetition.
        extra: peak memory beyond y and dx, in multiples of x.
        bandwidth: on a GPU, the share of the copy bandwidth that the necessary bytes reach.
    """

    shape: tuple[int, ...]
    dtype: str
    memory_format: str
    layer: str
    ms: list[float]
    ratio: list[float]
    extra: float
    bandwidth: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repetitions", type=int, default=15, help="of each forward and backward")
    add("--threads", type=int, default=1, help="of PyTorch on CPU")
    add("--rois", type=float, default=1.0, help="scales the number of RoIs of every shape")


def run(args: argparse.Namespace) -> tuple[str, dict]:
    """Measure, and return the table and all numbers."""
    device = default_device()
    with threads(args.threads):
        rows = list(_rows(device, args.repetitions, args.rois))
    result = {"device": str(device), "threads": args.threads, "rows": [asdict(r) for r in rows]}
    return _table(rows), result


def _rows(device: torch.device, repetitions: int, scale: float) -> Iterator[Row]:
    shapes = SHAPES if device.type == "cpu" else (*SHAPES, LARGE)
    for shape, (dtype, kind), (name, memory_format) in product(
        shapes, DTYPES.items(), FORMATS.items()
    ):
        shape = (max(IMAGES, round(shape[0] * scale)), *shape[1:])
        x, dy = (
            torch.randn(shape, device=device).to(kind, memory_format=memory_format)
            for _ in range(2)
        )
        x.requires_grad_()
        steps = {
            label: _step(layer.to(device), x, dy) for label, layer in _layers(shape, device).items()
        }
        seconds = interleaved(steps, repetitions, waiting_for(device))
        necessary = PASSES * x.numel() * x.element_size()
        copy = _copy_bandwidth(x) if device.type == "cuda" else None
        for label, step in steps.items():
            times = seconds[label]
            reached = necessary / statistics.median(times)
            yield Row(
                shape,
                dtype,
                name,
                label,
                [1000 * s for s in times],
                ratios(times, seconds[REFERENCE]),
                peak_bytes(step, device) / (x.numel() * x.element_size()) - 2,
                reached / copy if copy else None,
            )


def _layers(shape: tuple[int, ...], device: torch.device) -> dict[str, nn.Module]:
    batches = ("images", "worker", "shuffled", "global")
    ours = {f"ours, {batch}": _ours(shape, batch) for batch in batches}
    return layers_of_others(shape[1], device) | ours


def _ours(shape: tuple[int, ...], batch: str) -> RoIBatchNorm2d:
    """16 images, of 8 virtual workers."""
    layout = RoILayout(NormalizationBatch(batch, virtual_workers=WORKERS))
    per_image = shape[0] // IMAGES
    layout.record([per_image] * (IMAGES - 1) + [shape[0] - per_image * (IMAGES - 1)])
    return RoIBatchNorm2d(shape[1], layout=layout)


def _step(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    def step() -> None:
        torch.autograd.grad(layer(x), x, dy)

    return step


def _copy_bandwidth(x: Tensor) -> float:
    """Bytes read and written per second by a copy on the device."""
    out = torch.empty_like(x)
    seconds = interleaved({"copy": lambda: out.copy_(x)}, 20, waiting_for(x.device))["copy"]
    return 2 * x.numel() * x.element_size() / statistics.median(seconds)


def _table(rows: list[Row]) -> str:
    headers = ["x", "layer", "ms, forward + backward", "ratio", "extra memory"]
    on_gpu = any(row.bandwidth is not None for row in rows)
    lines = [
        [
            f"{'x'.join(map(str, row.shape))} {row.dtype} {row.memory_format}",
            row.layer,
            spread(row.ms, 1),
            spread(row.ratio) if row.layer != REFERENCE else "1",
            f"{row.extra:.3f}",
            *([f"{row.bandwidth:.2f}"] if on_gpu else []),
        ]
        for row in rows
    ]
    headers += ["share of copy bandwidth"] if on_gpu else []
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
