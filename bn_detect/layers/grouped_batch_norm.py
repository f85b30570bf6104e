"""BatchNorm over an explicit partition of the samples into groups, on one process or over many.

Accuracy. The moments of each RoI are taken about its own mean, and merged into its group by Chan's
parallel formula (Chan, Golub & LeVeque 1983) with float64 sums. Across ranks, one all-reduce
carries (count, count * mean, M2 + count * mean^2) in float64; the relative error of a variance is
then at most about 2^-52 * (1 + mean^2 / var): 1e-6 at mean 100 with sigma 1e-3, and below float32's
own rounding of such data.

Memory. x is read once for the statistics and once to normalize; nothing of its size is allocated
beyond the result.
"""

import importlib.util
from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.collectives import all_reduce_sum
from . import plain_ops


class GroupStatistics(NamedTuple):
    """Moments of each group over the whole process group.

    mean, var: (num_groups, C), var biased (divided by count); count: (num_groups,), values per
    channel (RoIs x positions). An empty group has 0 everywhere. All float64.
    """

    mean: Tensor
    var: Tensor
    count: Tensor


def grouped_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group: Tensor,
    num_groups: int,
    eps: float,
    process_group: dist.ProcessGroup | None = None,
    *,
    population: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize every RoI with the mean and variance of its group (Ioffe & Szegedy 2015, Alg. 1).

    Args:
        x: (R, C, ...) float; any float dtype and memory format; R may be 0.
        weight, bias: (C,) or None.
        group: (R,) int64 in [0, num_groups), the group of each RoI.
        eps: added to the variance.
        process_group: None: the groups are this process's own. Else they span its ranks, each of
            which must call this, forward and backward, whether it has RoIs or not.
        population: mean and variance, (C,) each, that normalize a RoI whose group holds a single
            value per channel, whose own variance says nothing. None: such a RoI becomes `bias`.

    Returns:
        y like x; mean (num_groups, C) and var (num_groups, C), biased, and count (num_groups,),
        the values per channel (RoIs x positions), the same on every rank. Only y carries gradients.
    """
    pop_mean, pop_var = population if population is not None else (None, None)
    return _GroupedBatchNorm.apply(
        x, weight, bias, group, num_groups, eps, process_group, pop_mean, pop_var
    )


class _GroupedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, group, num_groups, eps, process_group, pop_mean, pop_var):
        stats = group_statistics(x, group, num_groups, process_group)
        mean, var = stats.mean, stats.var
        if pop_mean is not None:
            lonely = (stats.count == 1)[:, None]
            mean = torch.where(lonely, pop_mean.to(mean), mean)
            var = torch.where(lonely, pop_var.to(var), var)
        invstd = torch.rsqrt(var + eps)
        scale = invstd if weight is None else invstd * weight
        y = ops_for(x).normalize(x, group, mean, scale, bias)

        # Not the population itself: it is updated between forward and backward.
        ctx.save_for_backward(x, weight, bias, group, mean, var, stats.count)
        ctx.has_population = pop_mean is not None
        ctx.num_groups, ctx.eps, ctx.process_group = num_groups, eps, process_group
        out = stats.mean.to(plain_ops.accurate(x)), stats.var.to(plain_ops.accurate(x)), stats.count
        ctx.mark_non_differentiable(*out)
        return y, *out

    @staticmethod
    def backward(ctx, dy, *_):
        x, weight, bias, group, mean, var, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: somebody wants second derivatives
            if ctx.process_group is not None:
                raise RuntimeError(
                    "grouped_batch_norm: second derivatives stop at a statistic that is shared "
                    "between processes; use one process with VIRTUAL_WORKERS"
                )
            return _differentiable_backward(ctx, dy)

        invstd = torch.rsqrt(var + ctx.eps)
        sums = ops_for(x).gradient_sums(x, dy, group, mean)
        sum_dy, sum_dy_xmu = sums.unbind(1)
        dweight = (sum_dy_xmu * invstd).sum(0).to(weight) if weight is not None else None
        dbias = sum_dy.sum(0).to(bias) if bias is not None else None
        sum_dy, sum_dy_xmu = all_reduce_sum(sums, ctx.process_group).unbind(1)
        if not ctx.needs_input_grad[0]:
            return None, dweight, dbias, *[None] * 6

        n = count.clamp(min=1)[:, None]
        scale = invstd if weight is None else invstd * weight
        slope = -scale * invstd.square() * sum_dy_xmu / n
        shift = -scale * sum_dy / n
        if ctx.has_population:  # population statistics do not depend on x
            slope, shift = (torch.where((count == 1)[:, None], 0.0, t) for t in (slope, shift))
        dx = ops_for(x).input_gradient(x, dy, group, mean, slope, shift, scale)
        return dx, dweight, dbias, *[None] * 6


def group_statistics(
    x: Tensor, group: Tensor, num_groups: int, process_group: dist.ProcessGroup | None = None
) -> GroupStatistics:
    """Count, mean and biased variance of each group; arguments as in `grouped_batch_norm`."""
    positions = x[0, 0].numel() if len(x) else 0
    roi_mean, roi_m2 = ops_for(x).roi_moments(x)
    zeros = roi_mean.new_zeros((num_groups, x.shape[1]))
    count = torch.bincount(group, minlength=num_groups) * positions
    total = zeros.index_add(0, group, roi_mean)
    mean = total * (positions / count.clamp(min=1).double())[:, None]
    between = (roi_mean - mean[group]).square_().mul_(positions)
    m2 = zeros.index_add_(0, group, between.add_(roi_m2))
    if process_group is not None:
        count, mean, m2 = merge_over_ranks(count, mean, m2, process_group)
    return GroupStatistics(mean, m2 / count.clamp(min=1)[:, None], count)


def merge_over_ranks(
    count: Tensor, mean: Tensor, m2: Tensor, process_group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """The moments of all ranks: count (num_groups,), mean and M2 (num_groups, C), float64.

    One all-reduce of (num_groups, 2C + 1) float64 numbers.
    """
    n = count.double()[:, None]
    packed = torch.cat([n, n * mean, m2 + n * mean.square()], dim=1)
    n, total, square = all_reduce_sum(packed, process_group).split(
        [1, mean.shape[1], mean.shape[1]], dim=1
    )
    mean = total / n.clamp(min=1)
    return n[:, 0].round().long(), mean, (square - n * mean.square()).clamp(min=0)


def _differentiable_backward(ctx, dy):
    """The same gradients by autograd through plain operations, for derivatives of them."""
    x, weight, bias, group, used_mean, used_var, _ = ctx.saved_tensors
    values = plain_ops.positions_last(x)
    positions = values.shape[2]
    count = torch.bincount(group, minlength=ctx.num_groups).to(values)[:, None] * positions
    zeros = values.new_zeros((ctx.num_groups, x.shape[1]))
    mean = zeros.index_add(0, group, values.sum(2)) / count.clamp(min=1)
    spread = (values - mean[group][:, :, None]).square().sum(2)
    var = zeros.index_add(0, group, spread) / count.clamp(min=1)
    if ctx.has_population:
        mean = torch.where(count == 1, used_mean.to(mean), mean)
        var = torch.where(count == 1, used_var.to(var), var)
    y = (values - mean[group][:, :, None]) * torch.rsqrt(var + ctx.eps)[group][:, :, None]
    if weight is not None:
        y = y * weight[:, None]
    if bias is not None:
        y = y + bias[:, None]
    wanted = [t for t, need in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if need]
    grads = iter(torch.autograd.grad(y.reshape(x.shape).to(x.dtype), wanted, dy, create_graph=True))
    return *[next(grads) if need else None for need in ctx.needs_input_grad[:3]], *[None] * 6


def ops_for(x: Tensor) -> ModuleType:
    """The kernels for x: Triton's on a GPU that has them, else plain tensor operations."""
    if x.is_cuda and importlib.util.find_spec("triton") is not None:
        from . import triton_ops  # which exists for GPUs only

        if triton_ops.works_on(x.device):
            return triton_ops
    return plain_ops
