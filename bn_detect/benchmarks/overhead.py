"""Measure what a layer costs where there is little to compute: its operations, and their number.

On a CPU the time of a tiny tensor is the time to call operations. On a GPU it is the time to launch
kernels, and the same holds for small tensors: so the launches are counted, too.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..layers import NormalizationBatch, RoIBatchNorm2d, RoILayout
from .measuring import default_device, interleaved, ratios, spread, threads, waiting_for
from .subjects import REFERENCE, layers_of_others

HELP = "a tiny tensor, where only the number of operations counts"
SHAPE = (16, 256, 1, 2)
ARMS = {
    "ours, images": NormalizationBatch("images"),
    "ours, worker": NormalizationBatch("worker"),
    "ours, worker, 8 virtual": NormalizationBatch("worker", virtual_workers=8),
    "ours, shuffled, 8 virtual": NormalizationBatch("shuffled", virtual_workers=8),
    "ours, global": NormalizationBatch("global"),
}
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"}


@dataclass(frozen=True)
class Row:
    """One layer: microseconds of a step, each repetition, their ratios to torch's, operations."""

    layer: str
    us: list[float]
    ratio: list[float]
    forward: int
    backward: int


class CountOperations(TorchDispatchMode):
    """Collect the names of operations; views, and memory that is not filled, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repetitions", type=int, default=15, help="of each measurement")
    add("--calls", type=int, default=50, help="forwards and backwards in a measurement")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Measure, and return the table and all numbers."""
    device = default_device()
    with threads(1):
        rows = measure(device, args.repetitions, args.calls)
    headers = ["layer", "us, forward + backward", "ratio", "operations forward", "backward"]
    lines = [
        [r.layer, spread(r.us, 0), spread(r.ratio), r.forward or "-", r.backward or "-"]
        for r in rows
    ]
    table = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return table, {"device": str(device), "rows": [asdict(row) for row in rows]}


def measure(device: torch.device, repetitions: int, calls: int) -> list[Row]:
    """Time every layer on the tiny tensor, interleaved, and count its operations."""
    x = torch.randn(SHAPE, device=device, requires_grad=True)
    dy = torch.randn(SHAPE, device=device)
    layers = {name: layer.to(device) for name, layer in _layers(device).items()}
    # On a CPU that others use too, what this process computes says more than what it waits.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    steps = {name: partial(_step, layer, x, dy) for name, layer in layers.items()}
    seconds = interleaved(steps, repetitions, waiting_for(device), calls=calls, clock=clock)
    return [
        Row(
            name,
            [1e6 * s for s in seconds[name]],
            ratios(seconds[name], seconds[REFERENCE]),
            *count_operations(layer, x, dy),
        )
        for name, layer in layers.items()
    ]


def count_operations(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[int, int]:
    """Return how many operations a forward and a backward dispatch; a launched kernel is none."""
    with CountOperations() as forward:
        y = layer(x)
    with CountOperations() as backward:
        torch.autograd.grad(y, [x, *layer.parameters()], dy)
    return len(forward.names), len(backward.names)


def _layers(device: torch.device) -> dict[str, nn.Module]:
    layers = layers_of_others(SHAPE[1], device)
    for name, settings in ARMS.items():
        layout = RoILayout(settings)
        layout.record([1] * SHAPE[0])
        layers[name] = RoIBatchNorm2d(SHAPE[1], layout=layout)
    return layers


def _step(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> None:
    torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
