"""Moving averages that are equal on all ranks, as evaluation and checkpoints need them."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed.collectives import all_reduce_sum, default_group
from ..layers import RoIBatchNorm2d
from .bn_layers import running_statistics


@torch.no_grad()
def average_running_statistics(
    model: nn.Module, process_group: dist.ProcessGroup | None = None
) -> None:
    """Replace the moving averages of every BN layer of `model` by their mean over the ranks.

    A collective, with one all-reduce for the whole model. Call it on every rank before the model is
    evaluated or saved; a run that is to be repeated bit for bit calls it at the same iterations.

    Ranks have equal weight, except in layers with an `ema_weight`: there a rank that had no RoIs
    for some steps counts less. Statistics that are not finite do not count.
    """
    process_group = process_group or default_group()
    layers = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    if not layers:
        return
    packed = []  # of each layer: its weight, weight x mean, weight x variance
    for layer in layers:
        mean, var = (buffer.double().flatten() for buffer in running_statistics(layer))
        finite = mean.isfinite().all() & var.isfinite().all()
        weight = torch.where(finite, _weight(layer), 0.0)
        packed += [weight, *(weight * torch.where(finite, t, 0.0) for t in (mean, var))]
    sums = all_reduce_sum(torch.cat(packed), process_group)
    for layer in layers:
        running_mean, running_var = running_statistics(layer)
        width = running_mean.numel()
        weight, mean, var = sums[: 2 * width + 1].split([1, width, width])
        sums = sums[2 * width + 1 :]
        if weight > 0:
            running_mean.copy_((mean / weight).view_as(running_mean))
            running_var.copy_((var / weight).view_as(running_var))
        if isinstance(layer, RoIBatchNorm2d):
            layer.ema_weight.fill_(1)


def statistics_are_finite(layer: _BatchNorm) -> bool:
    """Return whether the statistics that the layer took from its last training batch are finite.

    The layers of this package do not let other values into their buffers, and tell by their
    attribute `last_finite`. Other layers are judged by their buffers.
    """
    last = getattr(layer, "last_finite", None)
    if last is not None:
        return bool(last)
    buffers = (layer.running_mean, layer.running_var)
    return all(bool(b.isfinite().all()) for b in buffers if b is not None)


def _weight(layer: _BatchNorm) -> Tensor:
    if isinstance(layer, RoIBatchNorm2d):
        return layer.ema_weight.double().reshape(1)
    return torch.ones(1, dtype=torch.float64, device=running_statistics(layer)[0].device)
