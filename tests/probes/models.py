"""Detectors of every kind that the probes understand, with batches for them."""

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn
from torchvision.models import detection

from bn_detect import convert_roi_batchnorm
from tests.modeling.images import model_inputs, random_boxes
from tests.modeling.small import KINDS, config, randomized

TORCHVISION = ("fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2")
EVERY = (*KINDS, *TORCHVISION, "converted")
SIDE = 64  # of an image, in pixels; torchvision's are as wide as 48


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
    model = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=SIDE,
        max_size=SIDE,
        box_batch_size_per_image=12,
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=5,
    )
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    if kind == "converted":
        heads = model.roi_heads
        convert_roi_batchnorm(heads.box_head, "images", pooler=heads.box_roi_pool)
    return model


def batches(kind: str, count: int, images: int = 2) -> list:
    """With ground truth, as training takes them."""
    if kind in (*KINDS, "stock"):
        return [model_inputs(images, seed) for seed in range(count)]
    return [_torchvision_batch(seed, images) for seed in range(count)]


def _torchvision_batch(seed: int, images: int) -> tuple[list[Tensor], list[dict]]:
    g = torch.Generator().manual_seed(seed)
    pixels, targets = [], []
    for _ in range(images):
        pixels.append(torch.rand(3, SIDE, 48, generator=g))
        boxes = random_boxes(3, g) * torch.tensor([48 / SIDE, 1, 48 / SIDE, 1])
        masks = torch.zeros(3, SIDE, 48, dtype=torch.uint8)
        masks[:, 10:40, 10:40] = 1
        labels = torch.randint(1, 3, (3,), generator=g)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return pixels, targets
