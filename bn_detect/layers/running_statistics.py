"""Moving averages that are the same on every rank."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed.collectives import all_reduce_sum, default_group
from .roi_batch_norm import RoIBatchNorm2d


@torch.no_grad()
def average_running_statistics(
    model: nn.Module, process_group: dist.ProcessGroup | None = None
) -> None:
    """Replace the moving averages of every BN layer of `model` by their mean over the ranks.

    Ranks count by their layer's `ema_weight` where it has one (a rank that had no RoIs for a while
    counts less), equally otherwise. One all-reduce for the whole model; a collective. Call it
    before the model is evaluated or saved, on every rank, and at the same iterations in a run
    that is to be repeated bit for bit.
    """
    process_group = process_group or default_group()
    layers = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    if not layers:
        return
    packed = []
    for layer in layers:
        weight = _weight(layer)
        packed += [
            weight,
            weight * layer.running_mean.double().flatten(),
            weight * layer.running_var.double().flatten(),
        ]
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


def _weight(layer: _BatchNorm) -> torch.Tensor:
    if isinstance(layer, RoIBatchNorm2d):
        return layer.ema_weight.double().reshape(1)
    return torch.ones(1, dtype=torch.float64, device=layer.running_mean.device)
