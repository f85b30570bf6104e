"""Moving averages that are the same on every rank."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed.collectives import all_reduce_sum, default_group
from ..layers.roi_batch_norm import RoIBatchNorm2d


@torch.no_grad()
def average_running_statistics(
    model: nn.Module, process_group: dist.ProcessGroup | None = None
) -> None:
    """Replace the moving averages of every BN layer of `model` by their mean over the ranks.

    Ranks count by their layer's `ema_weight` where it has one (a rank that had no RoIs for a while
    counts less), equally otherwise; one whose statistics are not finite does not count. One
    all-reduce for the whole model; a collective. Call it before the model is evaluated or saved, on
    every rank, and at the same iterations in a run that is to be repeated bit for bit.
    """
    process_group = process_group or default_group()
    layers = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    if not layers:
        return
    packed = []
    for layer in layers:
        mean, var = layer.running_mean.double().flatten(), layer.running_var.double().flatten()
        finite = mean.isfinite().all() & var.isfinite().all()
        weight = torch.where(finite, _weight(layer), 0.0)
        packed += [weight, *(weight * torch.where(finite, t, 0.0) for t in (mean, var))]
    sums = all_reduce_sum(torch.cat(packed), process_group)
    for layer in layers:
        width = layer.running_mean.numel()
        weight, mean, var = sums[: 2 * width + 1].split([1, width, width])
        sums = sums[2 * width + 1 :]
        if weight > 0:
            layer.running_mean.copy_((mean / weight).view_as(layer.running_mean))
            layer.running_var.copy_((var / weight).view_as(layer.running_var))
        if isinstance(layer, RoIBatchNorm2d):
            layer.ema_weight.fill_(1)


def statistics_are_finite(layer: _BatchNorm) -> bool:
    """Whether what the layer took last from a training batch was finite.

    Layers of this package say so themselves, for they do not let it into their buffers; of others
    the buffers show it.
    """
    last = getattr(layer, "last_finite", None)
    if last is not None:
        return bool(last)
    buffers = (layer.running_mean, layer.running_var)
    return all(bool(b.isfinite().all()) for b in buffers if b is not None)


def _weight(layer: _BatchNorm) -> torch.Tensor:
    if isinstance(layer, RoIBatchNorm2d):
        return layer.ema_weight.double().reshape(1)
    return torch.ones(1, dtype=torch.float64, device=layer.running_mean.device)
