"""Measure how time and memory of the layer grow with RoIs, groups and virtual workers."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from ..layers import NormalizationBatch, RoIBatchNorm2d, RoILayout, grouped_batch_norm
from ..reporting.drawing import COLOURS, new_figure
from .measuring import default_device, interleaved, peak_bytes, spread, threads, waiting_for

HELP = "time and memory as RoIs, groups and virtual workers grow"
CHANNELS, SIDE = 256, 7
ROIS = (64, 128, 256, 512, 1024, 2048, 4096)
GROUPS = (1, 4, 16, 64, 256, 1024)
WORKERS = (1, 2, 4, 8, 16, 32, 64)
FIXED_ROIS = 1024


@dataclass(frozen=True)
class Point:
    """Forward and backward with `value` of `axis`; extra memory beyond y and dx, in MB."""

    axis: str
    value: int
    ms: list[float]
    extra: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repetitions", type=int, default=7, help="of each forward and backward")
    add("--threads", type=int, default=1, help="of PyTorch on CPU")
    add("--most", type=int, default=max(ROIS), help="the most RoIs")


def run(args: argparse.Namespace) -> tuple[str, dict]:
    """Measure and draw; returns the table and all numbers."""
    device = default_device()
    with threads(args.threads):
        points = _points(device, args.repetitions, args.most)
    picture = args.output / "scaling.png"
    _draw(points, picture)
    lines = [[p.axis, p.value, spread(p.ms, 1), f"{p.extra:.1f}"] for p in points]
    headers = ["axis", "value", "ms, forward + backward", "extra memory, MB"]
    table = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    result = {"device": str(device), "points": [asdict(p) for p in points]}
    return f"{table}\n\nThe picture is {picture}.", result


def _points(device: torch.device, repetitions: int, most: int) -> list[Point]:
    fixed = min(FIXED_ROIS, most)
    axes: dict[str, dict[int, Callable[[], None]]] = {
        "RoIs, 8 groups": {n: _by_groups(n, 8, device) for n in ROIS if n <= most},
        f"groups, {fixed} RoIs": {n: _by_groups(fixed, n, device) for n in GROUPS},
        f"virtual workers, {fixed} RoIs": {n: _by_workers(fixed, n, device) for n in WORKERS},
    }
    points = []
    for axis, steps in axes.items():
        seconds = interleaved(
            {str(n): step for n, step in steps.items()}, repetitions, waiting_for(device)
        )
        for n, step in steps.items():
            rois = n if axis.startswith("RoIs") else fixed
            y_and_dx = 2 * rois * CHANNELS * SIDE**2 * 4
            extra = (peak_bytes(step, device) - y_and_dx) / 1e6
            points.append(Point(axis, n, [1000 * s for s in seconds[str(n)]], extra))
    return points


def _input(rois: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x, dy = torch.randn(2, rois, CHANNELS, SIDE, SIDE, device=device)
    return x.requires_grad_(), dy


def _by_groups(rois: int, groups: int, device: torch.device) -> Callable[[], None]:
    """The functional core; RoIs are dealt out to the groups one by one."""
    x, dy = _input(rois, device)
    group = torch.arange(rois, device=device) % groups
    weight, bias = torch.randn(2, CHANNELS, device=device)

    def step() -> None:
        y = grouped_batch_norm(x, weight, bias, group, groups, 1e-5)[0]
        torch.autograd.grad(y, x, dy)

    return step


def _by_workers(rois: int, workers: int, device: torch.device) -> Callable[[], None]:
    """The layer under "shuffled", 64 images; the partition is part of the step."""
    x, dy = _input(rois, device)
    layout = RoILayout(NormalizationBatch("shuffled", virtual_workers=workers))
    layer = RoIBatchNorm2d(CHANNELS, layout=layout).to(device)

    def step() -> None:
        layout.record([rois // max(WORKERS)] * max(WORKERS))
        torch.autograd.grad(layer(x), x, dy)

    return step


def _draw(points: list[Point], path: Path) -> None:
    axes = list(dict.fromkeys(p.axis for p in points))
    figure = new_figure(4.2 * len(axes), 3.6)
    for plot, axis in zip(figure.subplots(1, len(axes)), axes, strict=True):
        here = [p for p in points if p.axis == axis]
        values = [p.value for p in here]
        middle = [sorted(p.ms)[len(p.ms) // 2] for p in here]
        plot.plot(values, middle, "o-", color=COLOURS[0], label="time, ms")
        memory = [p.extra for p in here]
        plot.plot(values, memory, "s--", color=COLOURS[1], label="memory beyond y and dx, MB")
        if axis.startswith("RoIs"):
            scale = middle[-1] / values[-1]
            plot.plot(values, [scale * v for v in values], "k:", lw=1, label="linear")
        plot.set_xscale("log", base=2)
        plot.set_yscale("log", base=2)
        plot.set_xlabel(axis)
        plot.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
