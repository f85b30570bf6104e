"""Features of several levels, and a RetinaNet head over them."""

import itertools

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from bn_detect.modeling import BNRetinaNetHead

CHANNELS = 4
SIZES = [(12, 9), (6, 5), (3, 3)]
CHOICES = [
    dict(zip(("batch", "population", "affine"), choice, strict=True))
    for choice in itertools.product(("shared", "level"), repeat=3)
]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def features(images: int = 2, seed: int = 0) -> list[Tensor]:
    """Float64, levels of unlike mean and spread."""
    g = torch.Generator().manual_seed(seed)
    noise = [torch.randn(images, CHANNELS, *s, generator=g, dtype=torch.float64) for s in SIZES]
    return [level + (1 + level) * x for level, x in enumerate(noise)]


def randomized(module: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return module.double()


def retinanet_head(norm: str = "BN", cls: type = BNRetinaNetHead, **choices) -> nn.Module:
    shapes = [ShapeSpec(channels=CHANNELS)] * len(SIZES)
    numbers = {"num_classes": 2, "num_anchors": 1, "conv_dims": [CHANNELS, CHANNELS]}
    return randomized(cls(input_shape=shapes, norm=norm, **numbers, **choices))
