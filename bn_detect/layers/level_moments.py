"""BatchNorm of several feature maps at once, each a level: their moments, and who is normalized
with which.

The moments of each map are taken and reduced over the ranks as `grouped_batch_norm` does it; those
of all maps together follow from them by Chan's formula, without reading anything again. So one pass
serves every choice of batch and population.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed.collectives import all_reduce_sum
from .grouped_batch_norm import GroupStatistics, group_statistics, merge_over_ranks, ops_for


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
    """The moments of all groups together, as one group."""
    count = stats.count.double()[:, None]
    total = count.sum(0, keepdim=True).clamp(min=1)
    mean = (count * stats.mean).sum(0, keepdim=True) / total
    spread = stats.var + (stats.mean - mean).square()
    return GroupStatistics(
        mean, (count * spread).sum(0, keepdim=True) / total, stats.count.sum(0, keepdim=True)
    )


class _LevelBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shared, eps, process_group, *tensors):
        xs, weights, biases = _thirds(tensors)
        each = [group_statistics(x, _one_group(x), 1) for x in xs]
        mean, var, count = (torch.cat(parts) for parts in zip(*each, strict=True))
        if process_group is not None:
            m2 = var * count[:, None]
            count, mean, m2 = merge_over_ranks(count, mean, m2, process_group)
            var = m2 / count.clamp(min=1)[:, None]
        stats = GroupStatistics(mean, var, count)
        batch = union(stats) if shared else stats
        invstd = torch.rsqrt(batch.var + eps)
        means, invstds = _rows(xs, batch.mean, invstd)
        ys = [
            ops_for(x).normalize(x, _one_group(x), m[None], (s * w)[None], b)
            for x, w, b, m, s in zip(xs, weights, biases, means, invstds, strict=True)
        ]
        ctx.save_for_backward(*xs, *weights, batch.mean, invstd, batch.count)
        ctx.process_group = process_group
        ctx.mark_non_differentiable(*stats)
        return *ys, *stats

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        *tensors, mean, invstd, count = ctx.saved_tensors
        xs, weights = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        dys = grads[: len(xs)]
        means, invstds = _rows(xs, mean, invstd)
        sums = torch.cat(
            [
                ops_for(x).gradient_sums(x, dy, _one_group(x), m[None])
                for x, dy, m in zip(xs, dys, means, strict=True)
            ]
        )
        dbiases, moments = sums.unbind(1)
        dweights = [m * s for m, s in zip(moments, invstds, strict=True)]

        # Of dy * weight, over each batch: (batches, 2, C).
        weighted = sums * torch.stack(list(weights)).to(sums)[:, None]
        if len(mean) < len(xs):
            weighted = weighted.sum(0, keepdim=True)
        sum_dy, sum_dy_xmu = all_reduce_sum(weighted, ctx.process_group).unbind(1)
        n = count.clamp(min=1)[:, None]
        slopes, shifts = _rows(xs, -(invstd**3) * sum_dy_xmu / n, -invstd * sum_dy / n)
        dxs = [
            ops_for(x).input_gradient(
                x, dy, _one_group(x), m[None], slope[None], shift[None], (s * w)[None]
            )
            for x, dy, w, m, s, slope, shift in zip(
                xs, dys, weights, means, invstds, slopes, shifts, strict=True
            )
        ]
        affine = [d.to(w) for d, w in zip([*dweights, *dbiases], [*weights] * 2, strict=True)]
        return None, None, None, *dxs, *affine


def _thirds(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    number = len(tensors) // 3
    return tensors[:number], tensors[number : 2 * number], tensors[2 * number :]


def _rows(xs: Sequence[Tensor], *tables: Tensor) -> list[Tensor]:
    """Each table (D or 1, C) with a row for each of the D maps."""
    return [table.expand(len(xs), -1) for table in tables]


def _one_group(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)
