"""A step of the box head and of the mask head on several ranks, under each normalization batch."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.layers import ShapeSpec
from tabulate import tabulate
from torch import Tensor

from ..distributed.collectives import all_reduce_sum, default_group
from ..layers import NormalizationBatch, RoIBatchNorm2d
from ..layers.watching import apply_to_moved_rois
from ..modeling import BNConvFCHead, BNMaskConvUpsampleHead
from .all_gather import apply_after_all_gather
from .measuring import (
    default_device,
    interleaved,
    on_ranks,
    ranks_possible,
    ratios,
    spread,
    waiting_for,
)

HELP = "a step of the heads on 1, 2, 4 ranks, and moving RoIs by itself"
CHANNELS, IMAGES = 256, 2
REFERENCE, GATHERED = "worker", "shuffled, all-gather"
WAITING = "worker, waiting at each layer"
BATCHES = {
    REFERENCE: NormalizationBatch("worker"),
    "images": NormalizationBatch("images"),
    "global": NormalizationBatch("global"),
    "shuffled, statistics": NormalizationBatch("shuffled"),
    "shuffled, features": NormalizationBatch("shuffled", exchange="features"),
}


@dataclass(frozen=True)
class Row:
    """ms: of each repetition on the slowest rank. ratio: to the first arm of the same case."""

    what: str
    ranks: int
    arm: str
    ms: list[float]
    ratio: list[float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    few = default_device().type == "cpu"
    add = parser.add_argument
    add("--repetitions", type=int, default=7, help="of each step")
    add("--rois", type=int, default=128 if few else 1024, help="of the box head, per rank")
    add("--mask-rois", type=int, default=32 if few else 256, help="of the mask head, per rank")
    add("--ranks", type=int, nargs="+", default=[n for n in (1, 2, 4, 8) if n <= ranks_possible()])


def run(args: argparse.Namespace) -> tuple[str, dict]:
    """Measure, and return the table and all numbers."""
    rows = [
        row
        for ranks in args.ranks
        for row in on_ranks(_measure, ranks, args.repetitions, args.rois, args.mask_rois)
    ]
    result = {"device": default_device().type, "rows": [asdict(row) for row in rows]}
    lines = [[row.what, row.ranks, row.arm, spread(row.ms, 1), spread(row.ratio)] for row in rows]
    headers = ["step (forward + backward)", "ranks", "batch", "ms, slowest rank", "ratio"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True), result


def _measure(device: torch.device, repetitions: int, rois: int, mask_rois: int) -> list[Row]:
    """Measure on one rank."""
    rows = []
    for what, count, side, head in (
        (f"box head, {rois} RoIs", rois, 7, box_head),
        (f"mask head, {mask_rois} RoIs", mask_rois, 14, mask_head),
    ):
        x = torch.randn(count, CHANNELS, side, side, device=device, requires_grad=True)
        steps = dict(head_steps(head, x))
        rows += _timed(what, steps, repetitions, device)
    if dist.get_world_size() > 1:
        x = torch.randn(rois * 8, CHANNELS, 7, 7, device=device, requires_grad=True)
        rows += _timed(f"moving {rois * 8} RoIs and back", _moves(x), repetitions, device)
    return rows


def _timed(what: str, steps: dict, repetitions: int, device: torch.device) -> list[Row]:
    wait = waiting_for(device)
    seconds = interleaved(steps, repetitions, lambda: (wait(), dist.barrier()))
    first = next(iter(seconds.values()))
    return [
        Row(what, dist.get_world_size(), arm, [1000 * s for s in times], ratios(times, first))
        for arm, times in seconds.items()
    ]


def head_steps(
    build: Callable[[NormalizationBatch], Any], x: Tensor
) -> Iterator[tuple[str, Callable]]:
    """Forward and backward of whole heads, parameters included."""
    for arm, batch in BATCHES.items():
        head = build(batch).to(x.device)
        yield arm, _step(_with_images(head, len(x)), x, list(head.parameters()))
    if dist.get_world_size() > 1:
        head = build(BATCHES[REFERENCE]).to(x.device)
        for layer in head.modules():
            if isinstance(layer, RoIBatchNorm2d):
                layer.register_forward_hook(lambda layer, inputs, y: _WaitForAll.apply(y))
        yield WAITING, _step(_with_images(head, len(x)), x, list(head.parameters()))

        head = build(BATCHES[REFERENCE]).to(x.device)
        generator = torch.Generator().manual_seed(0)
        group = default_group()

        def gathered(x: Tensor) -> Tensor:
            return apply_after_all_gather(_layers(head), x, generator, group)

        yield GATHERED, _step(gathered, x, list(head.parameters()))


class _WaitForAll(torch.autograd.Function):
    """Return x once all ranks are here, its gradient likewise.

    Any exchange of statistics costs this much where ranks are not equally fast.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        all_reduce_sum(x.new_zeros(1), default_group())
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        all_reduce_sum(grad.new_zeros(1), default_group())
        return grad


def _with_images(
    head: BNConvFCHead | BNMaskConvUpsampleHead, rois: int
) -> Callable[[Tensor], Tensor]:
    per_image = [rois // IMAGES] * (IMAGES - 1)

    def forward(x: Tensor) -> Tensor:
        head.roi_layout.record([*per_image, rois - sum(per_image)])
        return _layers(head)(x)

    return forward


def _layers(head: BNConvFCHead | BNMaskConvUpsampleHead) -> Callable[[Tensor], Tensor]:
    """Compute the head's output from pooled features, without losses."""
    return head.layers if isinstance(head, BNMaskConvUpsampleHead) else head


def _step(forward: Callable[[Tensor], Tensor], x: Tensor, parameters: list) -> Callable[[], None]:
    def step() -> None:
        y = forward(x)
        torch.autograd.grad(y, [x, *parameters], torch.ones_like(y))

    return step


def _moves(x: Tensor) -> dict[str, Callable]:
    """Communication alone: RoIs there and back, gradients too; nothing is computed between."""
    layout = box_head(BATCHES["shuffled, features"]).roi_layout
    generator = torch.Generator().manual_seed(0)
    group = default_group()
    return {
        GATHERED: _step(
            lambda x: apply_after_all_gather(lambda rows: rows * 1, x, generator, group), x, []
        ),
        "shuffled, features": _step(
            lambda x: apply_to_moved_rois(layout, lambda rows: rows * 1, x), x, []
        ),
    }


def box_head(batch: NormalizationBatch) -> BNConvFCHead:
    """4conv1fc, as on COCO."""
    return BNConvFCHead(
        ShapeSpec(channels=CHANNELS, height=7, width=7),
        conv_dims=[CHANNELS] * 4,
        fc_dims=[1024],
        conv_norm="BN",
        roi_batch=batch,
    )


def mask_head(batch: NormalizationBatch) -> BNMaskConvUpsampleHead:
    """4 convolutions and a deconvolution, as on COCO."""
    return BNMaskConvUpsampleHead(
        ShapeSpec(channels=CHANNELS, height=14, width=14),
        num_classes=80,
        conv_dims=[CHANNELS] * 5,
        conv_norm="BN",
        roi_batch=batch,
    )
