"""Small detectors of torchvision, with batches for them; needs torch and torchvision alone."""

import torch
from torch import Tensor, nn
from torchvision.models import detection

from bn_detect import convert_roi_batchnorm

TORCHVISION = ("fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2")
HEIGHT, WIDTH = 64, 48  # of an image, in pixels


def torchvision_detector(name: str = TORCHVISION[0], *, converted: bool = False) -> nn.Module:
    """With random weights, two classes and background.

    Args:
        converted: give the box head the normalization batch "images".
    """
    torch.manual_seed(0)
    model = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=HEIGHT,
        max_size=HEIGHT,
        box_batch_size_per_image=12,
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=5,
    )
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    if converted:
        heads = model.roi_heads
        convert_roi_batchnorm(heads.box_head, "images", pooler=heads.box_roi_pool)
    return model


def torchvision_batch(seed: int, images: int = 2) -> tuple[list[Tensor], list[dict]]:
    """Images with ground truth, as training takes them."""
    g = torch.Generator().manual_seed(seed)
    pixels, targets = [], []
    for _ in range(images):
        pixels.append(torch.rand(3, HEIGHT, WIDTH, generator=g))
        limit = torch.tensor([WIDTH, HEIGHT])
        size = limit * (0.15 + 0.6 * torch.rand(3, 2, generator=g))
        corner = (limit - size) * torch.rand(3, 2, generator=g)
        masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
        masks[:, 10:40, 10:40] = 1
        labels = torch.randint(1, 3, (3,), generator=g)
        boxes = torch.cat([corner, corner + size], dim=1)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return pixels, targets
