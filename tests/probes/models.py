"""Detectors of every kind that the probes understand, with batches for them."""

import torch
from detectron2.modeling import build_model
from torch import nn

from tests.modeling.images import model_inputs
from tests.modeling.small import KINDS, config, randomized

from .torchvision_models import TORCHVISION, torchvision_batch, torchvision_detector

EVERY = (*KINDS, *TORCHVISION, "converted")


def detector(kind: str, norm: str = "BN", **roi_bn) -> nn.Module:
    """Ours (`KINDS`), Detectron2's ("stock"), torchvision's, or that with converted layers.

    Args:
        norm, roi_bn: of ours; see `tests.modeling.small.config`.
    """
    torch.manual_seed(0)
    if kind in KINDS:
        return randomized(build_model(config(kind, norm, **roi_bn)))
    if kind == "stock":
        return randomized(build_model(config("mask", norm, ours=False)))
    name = kind if kind in TORCHVISION else TORCHVISION[0]
    return torchvision_detector(name, converted=kind == "converted")


def batches(kind: str, count: int, images: int = 2) -> list:
    """With ground truth, as training takes them."""
    make = torchvision_batch if kind in (*TORCHVISION, "converted") else _inputs
    return [make(seed, images) for seed in range(count)]


def _inputs(seed: int, images: int) -> list[dict]:
    return model_inputs(images, seed)
