"""What BatchNorm over groups of RoIs computes, by tensor operations of any device.

RoIs are processed in chunks that fit in a cache, so x is read from memory once per function, and
nothing of its size is allocated beyond the result. `triton_ops` has the same functions.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# A few temporaries of one chunk stay in a core's cache on CPU, and keep a GPU busy.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 25}


def roi_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and sum of squares about it, of each RoI and channel.

    Args:
        x: (R, C, ...).

    Returns:
        (R, C) float64 each.
    """
    mean = x.new_zeros(x.shape[:2], dtype=torch.float64)
    m2 = torch.zeros_like(mean)
    for rows in _chunks(x):
        values = positions_last(x[rows])
        center = values.mean(2)
        values = values - center[:, :, None]
        # The mean was rounded, which is no trifle where the spread is small against it.
        rest = values.mean(2).double()
        spread = values.square_().sum(2).double()
        m2[rows] = spread.addcmul_(rest, rest, value=-values.shape[2]).clamp_(min=0)
        mean[rows] = rest.add_(center)
    return mean, m2


def normalize(x: Tensor, group: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(x - mean) * scale + bias with each RoI's group's numbers, into a new tensor like x.

    Args:
        x: (R, C, ...). group: (R,). mean, scale: (num_groups, C). bias: (C,).
    """
    y = torch.empty_like(x)
    mean, scale = mean.to(accurate(x)), scale.to(accurate(x))
    for rows in _chunks(x):
        g = group[rows]
        out = _centered(x[rows], mean[g], out=y[rows]).mul_(_expand(scale[g], x))
        if bias is not None:
            out.add_(_expand(bias, x))
        _store(out, y[rows])
    return y


def gradient_sums(x: Tensor, dy: Tensor, group: Tensor, mean: Tensor) -> Tensor:
    """Each group's sums over this rank of dy and of dy * (x - mean).

    Args:
        x, dy: (R, C, ...). group: (R,). mean: (num_groups, C).

    Returns:
        (num_groups, 2, C) float64.
    """
    sums = x.new_zeros((len(mean), 2, x.shape[1]), dtype=torch.float64)
    mean = mean.to(accurate(x))
    for rows in _chunks(x):
        g = group[rows]
        grad = dy[rows].to(accurate(x))
        moment = _centered(x[rows], mean[g]).mul_(grad)
        per_roi = torch.stack([positions_last(t).sum(2) for t in (grad, moment)], dim=1)
        sums.index_add_(0, g, per_roi.double())
    return sums


def input_gradient(
    x: Tensor, dy: Tensor, group: Tensor, mean: Tensor, slope: Tensor, shift: Tensor, scale: Tensor
) -> Tensor:
    """(x - mean) * slope + shift + dy * scale, into a new tensor like x.

    Args:
        x, dy: (R, C, ...). group: (R,). Others: (num_groups, C).
    """
    dx = torch.empty_like(x)
    mean, slope, shift, scale = (t.to(accurate(x)) for t in (mean, slope, shift, scale))
    for rows in _chunks(x):
        g = group[rows]
        d = _centered(x[rows], mean[g], out=dx[rows])
        d.mul_(_expand(slope[g], x)).add_(_expand(shift[g], x))
        d.addcmul_(dy[rows].to(d.dtype), _expand(scale[g], x))
        _store(d, dx[rows])
    return dx


def accurate(x: Tensor) -> torch.dtype:
    """The dtype for arithmetic on single values: float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def positions_last(x: Tensor) -> Tensor:
    """(R, C, ...) -> (R, C, positions), in at least float32; a view where it can be one."""
    return x.to(accurate(x)).reshape(*x.shape[:2], -1 if x.numel() else x.shape[2:].numel())


def _chunks(x: Tensor) -> Iterator[slice]:
    """Consecutive ranges of rows of x of a cache-friendly size."""
    row = max(1, x[0].numel() if len(x) else 1) * torch.finfo(accurate(x)).bits // 8
    step = max(1, _CHUNK_BYTES.get(x.device.type, 1 << 20) // row)
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _expand(t: Tensor, x: Tensor) -> Tensor:
    """View (R, C) or (C,) so that it broadcasts over the positions of x (R, C, ...)."""
    return t.reshape(*t.shape, *[1] * (x.dim() - 2))


def _centered(x: Tensor, mean: Tensor, out: Tensor | None = None) -> Tensor:
    """x - mean in at least float32; in `out` where its dtype allows, else in a new tensor."""
    if out is not None and out.dtype != mean.dtype:
        out = None
    return torch.sub(x, _expand(mean, x), out=out)


def _store(values: Tensor, out: Tensor) -> None:
    """Round into `out`, unless the values were computed there."""
    if values.dtype != out.dtype:
        out.copy_(values)
