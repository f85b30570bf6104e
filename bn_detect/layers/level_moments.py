"""BatchNorm of several feature maps (levels) at once, by moments of each map or of their union.

The moments of each map are taken and reduced over the ranks as in `grouped_batch_norm`. Those of
all maps together follow from them by Chan's formula, without reading anything again, so one pass
serves every choice of batch and population.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed.collectives import all_reduce_sum
from .partition import Partition
from .steps import ops_for
from .steps.numbers import Coefficients, GroupStatistics
from .steps.plain_ops import accurate, merge_over_ranks


def level_batch_norm(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    shared: bool,
    eps: float,
    process_group: dist.ProcessGroup | None = None,
) -> tuple[list[Tensor], GroupStatistics]:
    """Normalize D feature maps, each with its own moments or all with those of their union.

    Args:
        xs: D tensors (N, C, ...), float, of one dtype; N and the positions may differ, N may be 0.
        weights, biases: D tensors (C,); the same one may stand for several maps.
        shared: one batch of all maps, in which every position of every map counts once.
        eps: added to the variance.
        process_group: the ranks over which the moments are reduced; each must call this, forward
            and backward. One all-reduce of D (2C + 1) numbers, and one back of 2C for each batch.

    Returns:
        D tensors like `xs`; a batch of a single value per channel becomes its bias. And the moments
        of each map, D groups, the same on every rank; only the tensors carry gradients.
    """
    number = len(xs)
    out = _LevelBatchNorm.apply(shared, eps, process_group, *xs, *weights, *biases)
    return list(out[:number]), GroupStatistics(*out[number:])


def union(stats: GroupStatistics) -> GroupStatistics:
    """Merge the moments of all groups into those of one group."""
    count = stats.count.double()[:, None]
    total = count.sum(0, keepdim=True).clamp(min=1)
    mean = (count * stats.mean).sum(0, keepdim=True) / total
    spread = stats.var + (stats.mean - mean).square()
    return GroupStatistics(
        mean, (count * spread).sum(0, keepdim=True) / total, stats.count.sum(0, keepdim=True)
    )


class _LevelBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shared: bool,
        eps: float,
        process_group: dist.ProcessGroup | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        third = len(tensors) // 3
        xs, weights, biases = (tensors[i * third : (i + 1) * third] for i in range(3))
        partitions = [Partition.one_group(len(x), x.device) for x in xs]
        each = [
            ops_for(x).statistics(x, partition, torch.float64)
            for x, partition in zip(xs, partitions, strict=True)
        ]
        mean, var, count = (torch.cat(parts) for parts in zip(*each, strict=True))
        if process_group is not None:
            m2 = var * count[:, None]
            count, mean, m2 = merge_over_ranks(count, mean, m2, process_group)
            var = m2 / count.clamp(min=1)[:, None]
        stats = GroupStatistics(mean, var, count)
        batch = union(stats) if shared else stats
        invstd = torch.rsqrt(batch.var + eps)
        by = _coefficients(xs, weights, batch.mean, invstd)
        ys = [
            ops_for(x).normalize(x, partition.group, each_by, bias)
            for x, partition, each_by, bias in zip(xs, partitions, by, biases, strict=True)
        ]
        ctx.save_for_backward(*xs, *weights, batch.mean, invstd, batch.count)
        ctx.partitions, ctx.process_group = partitions, process_group
        ctx.mark_non_differentiable(*stats)
        return *ys, *stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mean, invstd, count = ctx.saved_tensors
        xs, weights = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        dys = grads[: len(xs)]
        by = _coefficients(xs, weights, mean, invstd)
        sums = torch.cat(
            [
                ops_for(x).gradient_sums(x, dy, partition, each_by.center)
                for x, dy, partition, each_by in zip(xs, dys, ctx.partitions, by, strict=True)
            ]
        )
        dbiases, moments = sums.unbind(1)
        dweights = moments * invstd

        # Sums of dy * weight over each batch: (batches, 2, C).
        weighted = sums * torch.stack(list(weights)).to(sums)[:, None]
        if len(mean) < len(xs):
            weighted = weighted.sum(0, keepdim=True)
        gradient = all_reduce_sum(weighted, ctx.process_group)
        gradient.div_(count.clamp(min=1)[:, None, None]).mul_(invstd[:, None])
        gradient[:, 1].mul_(invstd.square())
        dxs = [
            ops_for(x).input_gradient(x, dy, partition.group, each_by, each[None].to(accurate(x)))
            for x, dy, partition, each_by, each in zip(
                xs, dys, ctx.partitions, by, gradient.expand(len(xs), -1, -1), strict=True
            )
        ]
        affine = [d.to(w) for d, w in zip([*dweights, *dbiases], [*weights] * 2, strict=True)]
        return None, None, None, *dxs, *affine


def _coefficients(
    xs: Sequence[Tensor], weights: Sequence[Tensor], mean: Tensor, invstd: Tensor
) -> list[Coefficients]:
    """Return what normalizes each map; mean and invstd are (D, C), or (1, C) for all maps."""
    results = []
    for x, w, *row in zip(
        xs, weights, *(t.expand(len(xs), -1) for t in (mean, invstd)), strict=True
    ):
        center, scale = (t[None].to(accurate(x)) for t in row)
        results.append(Coefficients(center, scale, (scale * w).to(scale)))
    return results
