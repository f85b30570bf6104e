"""BatchNorm over an explicit partition of the samples into groups, on one process or over many.

Accuracy. The moments of each RoI are taken about a value of its own, and merged into its group by
Chan's parallel formula (Chan, Golub & LeVeque 1983) with float64 sums. Across ranks, one all-reduce
carries (count, count * mean, M2 + count * mean^2) in float64; the relative error of a variance is
then at most about 2^-52 * (1 + mean^2 / var): 1e-6 at mean 100 with sigma 1e-3, and below float32's
own rounding of such data.

Memory. x is read once for the statistics and once to normalize; nothing of its size is allocated
beyond the result.

Repeatability. Every sum has a fixed order: the same input gives the same bits.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.collectives import all_reduce_sum
from . import steps
from .partition import Partition
from .steps.numbers import Coefficients, GroupStatistics
from .steps.plain_ops import accurate


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

    Raises:
        NotImplementedError, ValueError: see `check_values`.
    """
    check_values(x, eps, "grouped_batch_norm")
    partition = Partition(group, num_groups, process_group, device=x.device)
    return partitioned_batch_norm(x, weight, bias, partition, eps, population)


def check_values(x: Tensor, eps: float, caller: str) -> None:
    """Raise where statistics of `x` mean nothing.

    Raises:
        NotImplementedError: values that are integers, booleans or complex.
        ValueError: eps is not positive, so that a constant channel would be divided by 0.
    """
    if not x.is_floating_point():
        raise NotImplementedError(f"{caller} takes floating-point values; got {x.dtype}")
    if eps <= 0:
        raise ValueError(f"{caller}: eps is {eps}; it must be positive")


def partitioned_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    partition: Partition,
    eps: float,
    population: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize as `grouped_batch_norm`, with a partition that several layers share."""
    results: tuple[Tensor, Tensor, Tensor, Tensor] = _GroupedBatchNorm.apply(
        x, weight, bias, partition, eps, population
    )
    return results


class _GroupedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        partition: Partition,
        eps: float,
        population: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, ...]:
        y, stats, by = normalize_forward(x, weight, bias, partition, eps, population)
        ctx.save_for_backward(x, weight, bias)
        ctx.partition, ctx.eps, ctx.by, ctx.count = partition, eps, by, stats.count
        ctx.has_population = population is not None
        ctx.mark_non_differentiable(*stats)
        ctx.set_materialize_grads(False)  # three tensors of zeros, for gradients of statistics
        return y, *stats

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:  # nobody differentiates y
            return (None,) * 6
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: somebody wants second derivatives
            if ctx.partition.process_group is not None:
                raise RuntimeError(
                    "grouped_batch_norm: second derivatives stop at a statistic that is shared "
                    "between processes; use one process with VIRTUAL_WORKERS"
                )
            return *_differentiable_backward(ctx, dy), None, None, None
        dx, dweight, dbias = normalize_backward(
            x, dy, ctx.partition, ctx.by, ctx.count, ctx.has_population, ctx.needs_input_grad[0]
        )
        return (
            dx,
            None if weight is None else dweight.to(weight.dtype),
            None if bias is None else dbias.to(bias.dtype),
            None,
            None,
            None,
        )


def normalize_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    partition: Partition,
    eps: float,
    population: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, GroupStatistics, Coefficients]:
    """Compute the forward of `partitioned_batch_norm`, and what its backward needs."""
    ops = steps.ops_for(x)
    values = ops.converted(x)
    stats = ops.statistics(values, partition, accurate(x))
    by = ops.coefficients(stats, weight, eps, population)
    return ops.normalize(values, partition.group, by, bias).to(x.dtype), stats, by


def normalize_backward(
    x: Tensor,
    dy: Tensor,
    partition: Partition,
    by: Coefficients,
    count: Tensor,
    has_population: bool,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Compute the gradients of x, the weight and the bias; a collective where groups span ranks.

    Args:
        dy: gradient of y.
        by, count: of the forward.
        has_population: whether population statistics normalized groups of a single value.
    """
    ops = steps.ops_for(x)
    values, grad = ops.converted(x), ops.converted(dy)
    local = total = ops.gradient_sums(values, grad, partition, by.center)
    if partition.process_group is not None:
        total = all_reduce_sum(local.clone(), partition.process_group)
    dweight, dbias, gradient = ops.gradient_coefficients(local, total, by, count, has_population)
    if not needs_dx:
        return None, dweight, dbias
    dx = ops.input_gradient(values, grad, partition.group, by, gradient)
    return dx.to(x.dtype), dweight, dbias


def _differentiable_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the same gradients by autograd through plain operations, for derivatives of them."""
    x, weight, bias = ctx.saved_tensors
    group, num_groups = ctx.partition.group, ctx.partition.num_groups
    values = x.to(accurate(x)).reshape(*x.shape[:2], x.shape[2:].numel())
    n = ctx.count.clamp(min=1)[:, None]
    zeros = values.new_zeros((num_groups, x.shape[1]))
    mean = zeros.index_add(0, group, values.sum(2)) / n
    spread = (values - mean[group][:, :, None]).square().sum(2)
    invstd = torch.rsqrt(zeros.index_add(0, group, spread) / n + ctx.eps)
    if ctx.has_population:
        single = (ctx.count == 1)[:, None]
        mean = torch.where(single, ctx.by.center, mean)
        invstd = torch.where(single, ctx.by.invstd, invstd)
    y = (values - mean[group][:, :, None]) * invstd[group][:, :, None]
    if weight is not None:
        y = y * weight[:, None]
    if bias is not None:
        y = y + bias[:, None]
    wanted = [t for t, need in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if need]
    grads = iter(torch.autograd.grad(y.reshape(x.shape).to(x.dtype), wanted, dy, create_graph=True))
    return tuple(next(grads) if need else None for need in ctx.needs_input_grad[:3])
