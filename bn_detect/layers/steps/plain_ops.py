"""The steps of BatchNorm over groups of RoIs, in tensor operations that any device has.

`grouped_batch_norm` calls these where `triton_ops`, which has the same functions, does not work.
RoIs are processed in chunks that fit into a cache, so x is read from memory once per function, and
nothing of its size is allocated beyond the result. Every sum has a fixed order.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...distributed.collectives import all_reduce_sum
from ..partition import Partition
from .numbers import Coefficients, GroupStatistics

# Temporaries of one chunk stay in a core's cache on CPU, and keep a GPU busy.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 25}


def converted(x: Tensor) -> Tensor:
    """Return x in the dtype for arithmetic if it is a single chunk, for all functions to share.

    A small tensor costs the number of operations; a larger one is converted chunk by chunk, as
    nothing of its size is allocated.
    """
    return x.to(accurate(x)) if len(x) <= _rows_of_a_chunk(x) else x


def statistics(x: Tensor, partition: Partition, dtype: torch.dtype) -> GroupStatistics:
    """Return the moments of each group; a collective where the partition spans ranks.

    Args:
        x: (R, C, ...).
        dtype: of mean and var, which are computed in float64.
    """
    positions = x.shape[2:].numel()
    roi_mean, m2 = _roi_moments(x)
    mean = segment_sum(roi_mean, partition).div_(partition.divisor)
    between = roi_mean.sub_(_of_rois(mean, partition.group))
    m2 = segment_sum(m2.addcmul_(between, between, value=positions), partition)
    count, divisor = partition.sizes * positions, partition.divisor * max(1, positions)
    if partition.process_group is not None:
        count, mean, m2 = merge_over_ranks(count, mean, m2, partition.process_group)
        divisor = count.clamp(min=1)[:, None]
    var = torch.div(m2, divisor, out=torch.empty_like(m2, dtype=dtype))
    return GroupStatistics(mean.to(dtype), var, count)


def merge_over_ranks(
    count: Tensor, mean: Tensor, m2: Tensor, process_group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the moments of all ranks: count (num_groups,), mean and M2 (num_groups, C), float64.

    One all-reduce of (num_groups, 2C + 1) float64 numbers.
    """
    n = count.double()[:, None]
    packed = torch.cat([n, n * mean, m2 + n * mean.square()], dim=1)
    sizes = [1, mean.shape[1], mean.shape[1]]
    n, total, square = all_reduce_sum(packed, process_group).split(sizes, dim=1)
    mean = total / n.clamp(min=1)
    return n[:, 0].round().long(), mean, (square - n * mean.square()).clamp(min=0)


def coefficients(
    stats: GroupStatistics,
    weight: Tensor | None,
    eps: float,
    population: tuple[Tensor, Tensor] | None = None,
) -> Coefficients:
    """Return what normalizes each group, in the dtype of `stats`.

    Args:
        weight: (C,).
        population: mean and variance (C,) for groups of a single value.
    """
    mean, var, count = stats
    if population is not None:
        single = (count == 1)[:, None]
        mean, var = (
            torch.where(single, new.to(old), old)
            for old, new in zip((mean, var), population, strict=True)
        )
    invstd = (var + eps).rsqrt_()
    return Coefficients(mean, invstd, invstd if weight is None else invstd * weight)


def normalize(x: Tensor, group: Tensor, by: Coefficients, bias: Tensor | None) -> Tensor:
    """Return (x - center) * scale + bias with the numbers of each RoI's group, like x.

    Args:
        x: (R, C, ...). group: (R,). bias: (C,).
    """
    y = torch.empty_like(x)
    for memory, x_part, y_part, g in _chunks(x, y, group):
        exact = y_part.dtype == by.center.dtype
        out = _centered(x_part, _of_rois(by.center, g), y_part if exact else memory[0])
        _scale_and_shift(out, _of_rois(by.scale, g), bias)
        if not exact:
            y_part.copy_(out)
    return y


def gradient_sums(x: Tensor, dy: Tensor, partition: Partition, center: Tensor) -> Tensor:
    """Return this process's sums over each group of dy and of dy * (x - center).

    Args:
        x, dy: (R, C, ...). center: (num_groups, C).

    Returns:
        (num_groups, 2, C) float64.
    """
    sums = x.new_empty((x.shape[0], 2, x.shape[1]), dtype=torch.float64)
    for memory, x_part, dy_part, out, g in _chunks(x, dy, sums, partition.group):
        grad = _accurate(dy_part, memory[1])
        moment = _centered(x_part, _of_rois(center, g), memory[0]).mul_(grad)
        out[:, 0].copy_(_sum_positions(grad))
        out[:, 1].copy_(_sum_positions(moment))
    return segment_sum(sums.flatten(1), partition).view(-1, 2, x.shape[1])


def gradient_coefficients(
    local: Tensor,
    total: Tensor,
    by: Coefficients,
    count: Tensor,
    keep_single: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the sums of `gradient_sums` say of the gradients.

    Args:
        local, total: the sums of this process, and those over all ranks of the groups.
        count: (num_groups,), values per channel over all ranks. Where it is 0, shift and slope of
            the group, which no RoI needs, may be NaN.
        keep_single: a group of a single value was normalized with population statistics, which do
            not depend on x.

    Returns:
        Gradients of the weight and the bias from this process's RoIs, (C,) each; and shift and
        slope of each group, (num_groups, 2, C), for `input_gradient`.
    """
    sums = _standardized(local, by)
    dbias, dweight = (sums[0] if len(sums) == 1 else sums.sum(0)).unbind()
    if total is not local:
        sums = _standardized(total, by)
    out = sums / count[:, None, None]
    if keep_single:
        out.masked_fill_((count == 1)[:, None, None], 0)
    out[:, 1].mul_(by.invstd)
    return dweight, dbias, out.mul_(by.scale[:, None])


def _standardized(sums: Tensor, by: Coefficients) -> Tensor:
    """Return sums of dy and of dy * (x - center) * invstd, (num_groups, 2, C), in a new tensor."""
    sums = sums.to(by.center.dtype, copy=True)
    sums[:, 1].mul_(by.invstd)
    return sums


def input_gradient(
    x: Tensor, dy: Tensor, group: Tensor, by: Coefficients, gradient: Tensor
) -> Tensor:
    """Return dy * scale - (x - center) * slope - shift, like x.

    Args:
        x, dy: (R, C, ...). group: (R,). gradient: shift and slope, (num_groups, 2, C).
    """
    dx = torch.empty_like(x)
    for memory, x_part, dy_part, dx_part, g in _chunks(x, dy, dx, group):
        rest = _centered(x_part, _of_rois(by.center, g), memory[0])
        shift, slope = _of_rois(gradient, g).unbind(1)
        _scale_and_shift(rest, slope, shift)
        grad, scale = _accurate(dy_part, memory[1]), _expand(_of_rois(by.scale, g), x)
        exact = dx_part.dtype == scale.dtype
        out = torch.mul(grad, scale, out=dx_part if exact else grad).sub_(rest)
        if not exact:
            dx_part.copy_(out)
    return dx


def segment_sum(values: Tensor, partition: Partition) -> Tensor:
    """Sum the rows (R, D) of each group, in a fixed order; (num_groups, D)."""
    if partition.num_groups == 1:
        return values.sum(0, keepdim=True)
    # The sum of `values[order[start:end]]` for each group, in one operation without atomics.
    return torch._embedding_bag_forward_only(values, partition.order, partition.starts)[0]


def accurate(x: Tensor) -> torch.dtype:
    """Return the dtype for arithmetic on single values: float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _roi_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each RoI and channel, and the sum of squares about it; (R, C) float64.

    The sums are those of x - x[first position], which costs no extra pass to find a center. As the
    first position is one of the values, its square is at most (positions - 1) times M2, so what the
    subtraction loses is bounded, too.
    """
    mean, m2 = x.new_empty((2, *x.shape[:2]), dtype=torch.float64)
    positions = x.shape[2:].numel()
    if not x.numel():
        return mean.zero_(), m2.zero_()
    if positions == 1:
        return mean.copy_(x.view(x.shape[:2])), m2.zero_()
    for memory, x_part, mean_part, m2_part in _chunks(x, mean, m2):
        first = x_part
        while first.dim() > 2:
            first = first.select(2, 0)
        values = _centered(x_part, first := first.to(accurate(x)), memory[0])
        mean_part.copy_(_sum_positions(values))
        m2_part.copy_(_sum_positions(values.square_()))
        m2_part.addcmul_(mean_part, mean_part, value=-1 / positions)
        torch.add(first, mean_part, alpha=1 / positions, out=mean_part)
    return mean, m2.clamp_(min=0)


def _chunks(x: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
    """Cut x, and tensors with as many rows, into consecutive chunks of a cache-friendly size.

    Each comes with memory for two temporaries like it in the dtype for arithmetic, for to get a
    megabyte takes as long as to compute one; with None where there is a single chunk.
    """
    if not x.numel():
        return
    step = _rows_of_a_chunk(x)
    if step >= len(x):
        yield (None, None), x, *others
        return
    memory = [torch.empty_like(x[:step], dtype=accurate(x)) for _ in range(2)]
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield [t[: rows.stop - start] for t in memory], *(t[rows] for t in (x, *others))


def _rows_of_a_chunk(x: Tensor) -> int:
    row = x.shape[1:].numel() * torch.finfo(accurate(x)).bits // 8
    return max(1, _CHUNK_BYTES.get(x.device.type, 1 << 20) // max(1, row))


def _of_rois(table: Tensor, group: Tensor) -> Tensor:
    """Return the row of each RoI's group; one row for all if there is one group."""
    return table if len(table) == 1 else table.index_select(0, group)


@lru_cache(maxsize=64)
def _ones(number: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(number, dtype=dtype)


def _sum_positions(x: Tensor) -> Tensor:
    """(R, C, ...) -> (R, C)."""
    if x.dim() == 2:
        return x
    if x.device.type == "cpu" and x.is_contiguous():  # BLAS is faster at short rows
        positions = x.shape[2:].numel()
        return torch.mv(x.view(-1, positions), _ones(positions, x.dtype)).view(x.shape[:2])
    return x.sum(tuple(range(2, x.dim())))


def _expand(t: Tensor, x: Tensor) -> Tensor:
    """View (R, C) or (C,) so that it broadcasts over the positions of x (R, C, ...)."""
    return t.view(*t.shape, *[1] * (x.dim() - 2)) if x.dim() > 2 else t


def _scale_and_shift(values: Tensor, scale: Tensor, shift: Tensor | None) -> None:
    """Make of values (R, C, ...), in place, values * scale + shift, (R, C) or (C,) each."""
    scale = _expand(scale, values)
    if shift is None:
        values.mul_(scale)
    elif values.dim() == 2 or values.stride(1) == 1:  # where the channel varies fastest
        torch.addcmul(_expand(shift, values), values, scale, out=values)
    else:
        values.mul_(scale).add_(_expand(shift, values))


def _centered(x: Tensor, center: Tensor, out: Tensor | None) -> Tensor:
    """Return x - center in at least float32."""
    if x.dtype != center.dtype:  # converting first is faster than a subtraction of two dtypes
        return _accurate(x, out).sub_(_expand(center, x))
    return torch.sub(x, _expand(center, x), out=out)


def _accurate(x: Tensor, out: Tensor | None) -> Tensor:
    """Return x in the dtype for arithmetic: itself, or in `out`."""
    return x.to(accurate(x)) if x.dtype == accurate(x) or out is None else out.copy_(x)
