"""The moving average of the statistics of groups, which `RoIBatchNorm2d` updates in training."""

import math

import torch
from torch import Tensor

from . import steps
from .steps import plain_ops
from .steps.numbers import GroupStatistics, RunningStatistics

_TRUE = torch.ones((), dtype=torch.bool)


@torch.no_grad()
def update_running_statistics(
    running: RunningStatistics, stats: GroupStatistics, momentum: float | None
) -> Tensor:
    """Update the moving average with the statistics of the groups, as `RoIBatchNorm2d` says.

    A group of a single value has no unbiased variance and counts as empty, as does one whose
    statistics are not finite.

    Args:
        momentum: None: cumulative average, as in torch.

    Returns:
        Bool tensor (), whether all statistics are finite.
    """
    chosen = steps.ops_for(stats.mean)
    if chosen is not plain_ops:
        finite: Tensor = chosen.update_running(running, stats, momentum)
        return finite
    if stats.mean.device.type == "cpu" and _update_by_usual_groups(running, stats, momentum):
        return _TRUE
    return _update(running, stats, momentum)


def _update_by_usual_groups(
    running: RunningStatistics, stats: GroupStatistics, momentum: float | None
) -> bool:
    """Update with few operations, on CPU, where no group is empty or was empty before.

    Returns:
        False: nothing was done, as a group is empty, or was lately, or is not finite.
    """
    mean, var, count = stats
    sizes = count.tolist()
    if min(sizes) <= 1 or running.weight.item() != 1 or running.mean.dtype != mean.dtype:
        return False
    if not math.isfinite(var.sum().item()):  # a mean that is not finite leaves no finite variance
        return False
    running.batches.add_(1)
    rate = 1.0 / running.batches.item() if momentum is None else momentum
    if len(sizes) == 1:
        mean, var = mean[0], var[0] * (sizes[0] / (sizes[0] - 1))
    else:
        factor = torch.tensor([n / (n - 1) for n in sizes], dtype=var.dtype)
        mean, var = mean.mean(0), (var * factor[:, None]).mean(0)
    running.mean.lerp_(mean, rate)
    running.var.lerp_(var, rate)
    return True


def _update(running: RunningStatistics, stats: GroupStatistics, momentum: float | None) -> Tensor:
    """Do the update on any device, without asking the device for anything."""
    running.batches.add_(1)
    rate = running.batches.double().reciprocal() if momentum is None else momentum
    count = stats.count.double()
    wide = torch.promote_types(running.var.dtype, torch.float32)  # rounded when it is stored
    mean = stats.mean.to(wide)
    unbiased = (stats.var * (count / (count - 1).clamp(min=1))[:, None]).to(wide)
    finite = (mean.isfinite() & unbiased.isfinite()).all(1)
    usable = ((count > 1) & finite).double()
    share = usable.mean()
    each = (usable / usable.sum().clamp(min=1))[:, None]

    total = (1 - rate) * running.weight.double() + rate * share
    weight = torch.where(total > 0, rate * share / total, 0.0)
    for buffer, new in ((running.mean, mean), (running.var, unbiased)):
        new = (torch.where(finite[:, None], new, 0.0) * each).sum(0)
        buffer.copy_(torch.lerp(buffer.to(wide), new.to(wide), weight.to(wide)))
    running.weight.copy_(total)
    return finite.all()
