"""What a grouped BatchNorm must compute: torch's BatchNorm, group by group, in float64."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


class Outcome(NamedTuple):
    """What a layer gave, and the gradients of `loss`, None for what is None; all float64."""

    y: Tensor
    mean: Tensor
    var: Tensor
    count: Tensor
    dx: Tensor
    dweight: Tensor | None
    dbias: Tensor | None


def grouped_reference(x, weight, bias, group, num_groups, eps=EPS, population=None):
    """As `grouped_batch_norm`, by a loop over the groups; differentiable to any order."""
    y = x * 0
    for t in (weight, bias):
        y = y if t is None else y + 0 * _channels_first(t, x)  # a zero gradient without RoIs
    mean, var = x.new_zeros((2, num_groups, x.shape[1]))
    count = torch.zeros(num_groups, dtype=torch.int64)
    for g in range(num_groups):
        rows = torch.nonzero(group == g)[:, 0]
        values = x[rows].transpose(0, 1).flatten(1)  # (C, values per channel)
        count[g] = values.shape[1]
        if count[g] == 0:
            continue
        mean[g], var[g] = values.mean(1).detach(), values.var(1, correction=0).detach()
        if count[g] > 1:
            part = F.batch_norm(x[rows], None, None, weight, bias, True, 0.0, eps)
        elif population is not None:
            part = F.batch_norm(x[rows], *population, weight, bias, False, 0.0, eps)
        else:
            part = x[rows] * 0 + (0 if bias is None else _channels_first(bias, x))
        y = y.index_add(0, rows, part)
    return y, mean, var, count


def _channels_first(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *[1] * (x.dim() - 2))


def loss(y: Tensor) -> Tensor:
    """Nonlinear, a sum over values, and different in each position."""
    weight = torch.linspace(-1, 2, y.shape[1:].numel(), dtype=torch.float64).reshape(y.shape[1:])
    y = y.double()
    return (weight * y + (weight * y).sin() + 0.1 * y**3).sum()


def outcome(function, x: Tensor, weight: Tensor | None, bias: Tensor | None, *args, **kwargs):
    """`function(x, weight, bias, ...) -> (y, mean, var, count)` and its gradients."""
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y, mean, var, count = function(*inputs, *args, **kwargs)
    loss(y).backward()
    grads = [None if t is None else t.grad.double() for t in inputs]
    return Outcome(y.detach().double(), mean.double(), var.double(), count, *grads)


def assert_same(actual: Outcome, expected: Outcome, rtol: float = 1e-11, atol: float = 1e-11):
    for name, a, e in zip(Outcome._fields, actual, expected, strict=True):
        torch.testing.assert_close(
            a, e, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def affine(channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A weight (one of them negative) and a bias."""
    return (
        torch.linspace(-0.5, 1.5, channels, dtype=torch.float64).to(dtype),
        torch.linspace(0.3, -0.7, channels, dtype=torch.float64).to(dtype),
    )


def group_ids(sizes: list[int], seed: int = 0) -> Tensor:
    """(sum(sizes),) group ids in random order: `sizes[g]` RoIs in group g."""
    ids = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]


def features(*shape: int, mean: float = 0.5, std: float = 1.0, seed: int = 0) -> Tensor:
    """Float64 RoI features whose channels and RoIs differ in mean."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    offset = torch.randn((*shape[:2], *[1] * (len(shape) - 2)), generator=generator)
    return mean + std * (x + offset.double())
