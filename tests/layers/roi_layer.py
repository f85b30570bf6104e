"""A `RoIBatchNorm2d` to test, and what it gives."""

import torch
from torch import nn

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout

from .reference import affine

DOUBLE = {"dtype": torch.float64}
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def layer_for(rois_per_image, *, channels=3, batch="images", **kwargs) -> RoIBatchNorm2d:
    """A float64 layer with a weight and bias of its own; `kwargs`: of NormalizationBatch."""
    layout = RoILayout(NormalizationBatch(batch, **kwargs))
    layout.record(rois_per_image)
    layer = RoIBatchNorm2d(channels, **DOUBLE, layout=layout)
    layer.weight.data, layer.bias.data = affine(channels)
    return layer


def gradients(layer: nn.Module, x: torch.Tensor) -> tuple:
    """Output, and gradients of a nonlinear loss with respect to x and the parameters."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    loss = y.sin().sum() + y.pow(3).sum()
    return y.detach(), *torch.autograd.grad(loss, [x, *layer.parameters()])


def buffers(layer: nn.Module) -> dict:
    return {k: v.clone() for k, v in layer.state_dict().items() if k not in ("weight", "bias")}
