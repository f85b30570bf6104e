"""The steps of `plain_ops` as Triton kernels: each reads and writes every value once.

Imported where a GPU and Triton are there. Each function is one launch of a kernel of
`triton_kernels`, but `statistics` (two, and a third where groups span ranks) and `gradient_sums`
and `update_running` (two each).
"""

import logging
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...distributed.collectives import all_reduce_sum
from ..partition import Partition
from . import plain_ops
from . import triton_kernels as kernels
from .numbers import Coefficients, GroupStatistics, RunningStatistics

logger = logging.getLogger(__name__)

_OURS = sys.modules[__name__]
_TILE = 1024  # values of a tile over x, at most
GROUP_TILE = {"BLOCK_C": 32}  # of kernels over groups
ROWS_TILE = {"BLOCK_R": 32, "BLOCK_C": 32}
TABLE_TILE = {"BLOCK_G": 16, "BLOCK_C": 64}


@cache
def works_on(device: torch.device) -> bool:
    """Return whether the kernels compile there and agree with the plain operations; tried once.

    A driver or a Triton that does not fit costs speed then, not a training run.
    """
    try:
        x, dy = torch.randn(2, 3, 5, 2, 2, device=device)
        partition = Partition(torch.tensor([0, 1, 0]), 2, device=device)
        weight = torch.rand(5, device=device)
        steps = (_all_steps(ops, x, dy, partition, weight) for ops in (_OURS, plain_ops))
        for ours, plain in zip(*steps, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises
        logger.warning("Triton kernels are not used on %s: %s", device, error)
        return False
    return True


def _all_steps(
    ops: ModuleType, x: Tensor, dy: Tensor, partition: Partition, weight: Tensor
) -> list[Tensor]:
    """Return the results of each function of `ops`, which must be those of the other one."""
    stats = ops.statistics(x, partition, torch.float32)
    by = ops.coefficients(stats, weight, 1e-5)
    y = ops.normalize(x, partition.group, by, weight)
    sums = ops.gradient_sums(x, dy, partition, by.center)
    gradients = ops.gradient_coefficients(sums, sums, by, stats.count, False)
    dx = ops.input_gradient(x, dy, partition.group, by, gradients[2])
    return [*stats, *by, y, sums, *(t.float() for t in gradients), dx]


def converted(x: Tensor) -> Tensor:
    """Return x: the kernels convert what they read."""
    return x


def statistics(x: Tensor, partition: Partition, dtype: torch.dtype) -> GroupStatistics:
    """Compute what `plain_ops.statistics` computes, by kernels."""
    channels, positions = x.shape[1], x.shape[2:].numel()
    groups, spans = partition.num_groups, partition.process_group is not None
    moments = x.new_empty((len(x), 2, channels), dtype=torch.float64)
    _over_rois(kernels.roi_moments, x, moments, like=(x,))
    mean, var = x.new_empty((2, groups, channels), dtype=dtype)
    count = x.new_empty(groups, dtype=torch.int64)
    size = groups * (2 * channels + 1) if spans else 0
    packed = x.new_empty(size, dtype=torch.float64)
    grid = (groups, triton.cdiv(channels, ROWS_TILE["BLOCK_C"]))
    launch(
        kernels.merge_moments, grid, moments, partition.order, partition.starts, partition.sizes,
        mean, var, count, packed, channels, positions, SPANS=spans, **ROWS_TILE,
    )  # fmt: skip
    if spans:
        all_reduce_sum(packed, partition.process_group)
        grid = (groups, triton.cdiv(channels, GROUP_TILE["BLOCK_C"]))
        launch(kernels.unpack_moments, grid, packed, mean, var, count, channels, **GROUP_TILE)
    return GroupStatistics(mean, var, count)


def coefficients(
    stats: GroupStatistics,
    weight: Tensor | None,
    eps: float,
    population: tuple[Tensor, Tensor] | None = None,
) -> Coefficients:
    """Compute what `plain_ops.coefficients` computes, by kernels."""
    mean, var, count = stats
    groups, channels = mean.shape
    invstd = torch.empty_like(var)
    scale = invstd if weight is None else torch.empty_like(var)
    center = mean if population is None else torch.empty_like(mean)
    grid = (groups, triton.cdiv(channels, GROUP_TILE["BLOCK_C"]))
    launch(
        kernels.coefficients, grid, mean, var, count, mean if weight is None else weight,
        *(population or (mean, var)), center, invstd, scale, channels, EPS=eps,
        HAS_WEIGHT=weight is not None, HAS_POPULATION=population is not None, **GROUP_TILE,
    )  # fmt: skip
    return Coefficients(center, invstd, scale)


def normalize(x: Tensor, group: Tensor, by: Coefficients, bias: Tensor | None) -> Tensor:
    """Compute what `plain_ops.normalize` computes, by kernels."""
    y = _empty_like(x)
    given = by.center if bias is None else bias
    has_bias = bias is not None
    _over_rois(
        kernels.normalize, x, y, group, by.center, by.scale, given, like=(x, y), HAS_BIAS=has_bias
    )
    return y


def gradient_sums(x: Tensor, dy: Tensor, partition: Partition, center: Tensor) -> Tensor:
    """Compute what `plain_ops.gradient_sums` computes, by kernels."""
    groups, channels = center.shape
    per_roi = x.new_empty((len(x), 2, channels), dtype=torch.float64)
    _over_rois(kernels.gradient_sums, x, dy, per_roi, partition.group, center, like=(x, dy))
    sums = per_roi.new_empty((groups, 2, channels))
    grid = (groups, triton.cdiv(2 * channels, ROWS_TILE["BLOCK_C"]))
    launch(
        kernels.segment_sum, grid, per_roi, partition.order, partition.starts,
        partition.sizes, sums, 2 * channels, **ROWS_TILE,
    )  # fmt: skip
    return sums


def gradient_coefficients(
    local: Tensor, total: Tensor, by: Coefficients, count: Tensor, keep_single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what `plain_ops.gradient_coefficients` computes, by kernels."""
    groups, channels = by.center.shape
    dweight, dbias = by.center.new_empty((2, channels))
    out = torch.empty_like(total, dtype=by.center.dtype)
    grid = (triton.cdiv(channels, TABLE_TILE["BLOCK_C"]),)
    launch(
        kernels.gradient_coefficients, grid, local, total, count, by.invstd, by.scale,
        dweight, dbias, out, groups, channels, KEEP_SINGLE=keep_single, **TABLE_TILE,
    )  # fmt: skip
    return dweight, dbias, out


def input_gradient(
    x: Tensor, dy: Tensor, group: Tensor, by: Coefficients, gradient: Tensor
) -> Tensor:
    """Compute what `plain_ops.input_gradient` computes, by kernels."""
    dx = _empty_like(x)
    _over_rois(
        kernels.input_gradient, x, dy, dx, group, by.center, by.scale, gradient, like=(x, dy, dx)
    )
    return dx


def update_running(
    running: RunningStatistics, stats: GroupStatistics, momentum: float | None
) -> Tensor:
    """Compute what `running_statistics.update_running_statistics` computes, by kernels."""
    mean, var, count = stats
    groups, channels = mean.shape
    work = mean.new_empty(groups + 2, dtype=torch.float64)
    usable, step = work[:groups], work[groups:]
    finite = mean.new_empty((), dtype=torch.bool)
    rate = {"MOMENTUM": momentum or 0.0, "CUMULATIVE": momentum is None}
    launch(
        kernels.begin_update, (1,), mean, var, count, running.weight, running.batches,
        usable, step, finite, running.mean, groups, channels, **rate, **TABLE_TILE,
    )  # fmt: skip
    grid = (triton.cdiv(channels, TABLE_TILE["BLOCK_C"]),)
    launch(
        kernels.finish_update, grid, mean, var, count, usable, step,
        running.mean, running.var, groups, channels, **TABLE_TILE,
    )  # fmt: skip
    return finite


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch a kernel, if there is anything to do."""
    if all(grid):
        kernel[grid](*args, **constants)


def _empty_like(x: Tensor) -> Tensor:
    """Return a new tensor that can be viewed with its positions as one axis."""
    like = torch.empty_like(x)
    is_view = _flat(like).data_ptr() == like.data_ptr()
    return like if is_view else torch.empty_like(x, memory_format=torch.contiguous_format)


def _flat(x: Tensor) -> Tensor:
    """(R, C, positions), a copy where there is no such view."""
    return x.reshape(*x.shape[:2], x.shape[2:].numel())


def _over_rois(kernel: Any, *args: Tensor, like: tuple[Tensor, ...], **constants: Any) -> None:
    """Launch over (RoIs, tiles of channels); `like` are the arguments whose strides are passed."""
    x = like[0]
    rois, channels, positions = x.shape[0], x.shape[1], x.shape[2:].numel()
    # Over positions as one axis; a tensor that has no such view is copied, results never are.
    flat = [_flat(t) for t in like]
    named = {id(t): f for t, f in zip(like, flat, strict=True)}
    strides = [s for f in flat for s in f.stride()]
    block_c, block_p = tile(channels, positions, flat[0].stride(1) == 1)
    launch(
        kernel,
        (rois, triton.cdiv(channels, block_c)),
        *(named.get(id(a), a) for a in args),
        channels,
        positions,
        *strides,
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        **constants,
    )


def tile(channels: int, positions: int, channels_last: bool) -> tuple[int, int]:
    """Return how many channels and positions of a RoI a program works on at a time."""
    if channels_last and positions > 1:
        block_c = min(128, triton.next_power_of_2(channels))
        return block_c, min(_TILE // block_c, triton.next_power_of_2(positions))
    block_p = min(256, triton.next_power_of_2(positions))
    return min(max(1, _TILE // block_p), triton.next_power_of_2(channels)), block_p
