"""BatchNorm over an explicit partition of the samples into groups, on one process or over many.

Accuracy. The moments of each RoI are taken about its own mean, and merged into its group by Chan's
parallel formula (Chan, Golub & LeVeque 1983) with float64 sums. Across ranks, one all-reduce
carries (count, count * mean, M2 + count * mean^2) in float64; the relative error of a variance is
then at most about 2^-52 * (1 + mean^2 / var): 1e-6 at mean 100 with sigma 1e-3, and below float32's
own rounding of such data.

Memory. RoIs are processed in chunks that fit in a cache, so x is read once for the statistics and
once to normalize, and nothing of its size is allocated beyond the result.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.collectives import all_reduce_sum

# A few temporaries of one chunk stay in a core's cache on CPU, and keep a GPU busy.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 25}


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
        y = _normalize(x, group, mean, scale, bias)

        # Not the population itself: it is updated between forward and backward.
        ctx.save_for_backward(x, weight, bias, group, mean, var, stats.count)
        ctx.has_population = pop_mean is not None
        ctx.num_groups, ctx.eps, ctx.process_group = num_groups, eps, process_group
        out = stats.mean.to(_accurate(x)), stats.var.to(_accurate(x)), stats.count
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
        sums = _gradient_sums(x, dy, group, mean, ctx.num_groups)
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
        dx = torch.empty_like(x)
        mean, scale, slope, shift = (t.to(_accurate(x)) for t in (mean, scale, slope, shift))
        for rows in _chunks(x):
            g = group[rows]
            d = _centered(x[rows], mean[g], out=dx[rows])
            d.mul_(_expand(slope[g], x)).add_(_expand(shift[g], x))
            d.addcmul_(dy[rows].to(d.dtype), _expand(scale[g], x))
            _store(d, dx[rows])
        return dx, dweight, dbias, *[None] * 6


def group_statistics(
    x: Tensor, group: Tensor, num_groups: int, process_group: dist.ProcessGroup | None = None
) -> GroupStatistics:
    """Count, mean and biased variance of each group; arguments as in `grouped_batch_norm`."""
    rois, channels = x.shape[:2]
    positions = x[0, 0].numel() if rois else 0
    total = x.new_zeros((num_groups, channels), dtype=torch.float64)
    m2 = torch.zeros_like(total)
    roi_mean = x.new_empty((rois, channels), dtype=torch.float64)
    for rows in _chunks(x):
        values = _positions_last(x[rows])
        mean = values.mean(2)
        values = values - mean[:, :, None]
        # The mean was rounded, which is no trifle where the spread is small against it.
        rest = values.mean(2).double()
        spread = values.square_().sum(2).double()
        spread.addcmul_(rest, rest, value=-positions).clamp_(min=0)
        roi_mean[rows] = mean = rest.add_(mean)
        total.index_add_(0, group[rows], mean)
        m2.index_add_(0, group[rows], spread)

    count = torch.bincount(group, minlength=num_groups) * positions
    mean = total * (positions / count.clamp(min=1).double())[:, None]
    for rows in _chunks(roi_mean):
        between = roi_mean[rows] - mean[group[rows]]
        m2.index_add_(0, group[rows], between.square_().mul_(positions))
    if process_group is not None:
        count, mean, m2 = _merge_over_ranks(count, mean, m2, process_group)
    return GroupStatistics(mean, m2 / count.clamp(min=1)[:, None], count)


def _merge_over_ranks(count, mean, m2, process_group):
    """One all-reduce of (num_groups, 2C + 1) float64 numbers."""
    n = count.double()[:, None]
    packed = torch.cat([n, n * mean, m2 + n * mean.square()], dim=1)
    n, total, square = all_reduce_sum(packed, process_group).split(
        [1, mean.shape[1], mean.shape[1]], dim=1
    )
    mean = total / n.clamp(min=1)
    return n[:, 0].round().long(), mean, (square - n * mean.square()).clamp(min=0)


def _gradient_sums(x, dy, group, mean, num_groups) -> Tensor:
    """(num_groups, 2, C) float64: a group's sums over this rank of dy and of dy * (x - mean)."""
    sums = x.new_zeros((num_groups, 2, x.shape[1]), dtype=torch.float64)
    mean = mean.to(_accurate(x))
    for rows in _chunks(x):
        g = group[rows]
        grad = dy[rows].to(_accurate(x))
        moment = _centered(x[rows], mean[g]).mul_(grad)
        per_roi = torch.stack([_positions_last(t).sum(2) for t in (grad, moment)], dim=1)
        sums.index_add_(0, g, per_roi.double())
    return sums


def _normalize(x, group, mean, scale, bias) -> Tensor:
    """(x - mean) * scale + bias with each RoI's group's numbers, into a new tensor like x."""
    y = torch.empty_like(x)
    mean, scale = mean.to(_accurate(x)), scale.to(_accurate(x))
    for rows in _chunks(x):
        g = group[rows]
        out = _centered(x[rows], mean[g], out=y[rows]).mul_(_expand(scale[g], x))
        if bias is not None:
            out.add_(_expand(bias, x))
        _store(out, y[rows])
    return y


def _differentiable_backward(ctx, dy):
    """The same gradients by autograd through plain operations, for derivatives of them."""
    x, weight, bias, group, used_mean, used_var, _ = ctx.saved_tensors
    values = _positions_last(x)
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


def _accurate(x: Tensor) -> torch.dtype:
    """The dtype for arithmetic on single values: float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunks(x: Tensor) -> Iterator[slice]:
    """Consecutive ranges of rows of x of a cache-friendly size."""
    row = max(1, x[0].numel() if len(x) else 1) * torch.finfo(_accurate(x)).bits // 8
    step = max(1, _CHUNK_BYTES.get(x.device.type, 1 << 20) // row)
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _expand(t: Tensor, x: Tensor) -> Tensor:
    """View (R, C) or (C,) so that it broadcasts over the positions of x (R, C, ...)."""
    return t.reshape(*t.shape, *[1] * (x.dim() - 2))


def _positions_last(x: Tensor) -> Tensor:
    """(R, C, ...) -> (R, C, positions), in at least float32; a view where it can be one."""
    return x.to(_accurate(x)).reshape(*x.shape[:2], -1 if x.numel() else x.shape[2:].numel())


def _centered(x: Tensor, mean: Tensor, out: Tensor | None = None) -> Tensor:
    """x - mean in at least float32; in `out` where its dtype allows, else in a new tensor."""
    if out is not None and out.dtype != mean.dtype:
        out = None
    return torch.sub(x, _expand(mean, x), out=out)


def _store(values: Tensor, out: Tensor) -> None:
    """Round into `out`, unless the values were computed there."""
    if values.dtype != out.dtype:
        out.copy_(values)
