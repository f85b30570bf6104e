"""Models with initial weights and generated images to measure on."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..configuration.files import find
from ..configuration.keys import default_config

CONFIG = find("neon/faster_rcnn_lean_FPN_worker.yaml")
OBJECTS = 8  # per image
REFERENCE = "torch BatchNorm2d"


def resnet18() -> nn.Module:
    """ResNet-18 with BatchNorm; called with (N, 3, H, W)."""
    stages = ResNet.make_default_stages(18, norm="BN")
    return ResNet(BasicStem(3, 64, norm="BN"), stages, out_features=["res5"])


def layers_of_others(channels: int, device: torch.device) -> dict[str, nn.Module]:
    """Return the layers to compare with on a device, by name; `REFERENCE` is the first."""
    layers: dict[str, nn.Module] = {REFERENCE: nn.BatchNorm2d(channels)}
    if device.type == "cpu":  # which torch's SyncBatchNorm does not take
        layers["NaiveSyncBatchNorm N"] = NaiveSyncBatchNorm(channels, stats_mode="N")
    else:
        layers["torch SyncBatchNorm"] = nn.SyncBatchNorm(channels)
    return layers


def neon_config() -> CfgNode:
    """Return the config of the demo's detector with BatchNorm in its box head, on CPU."""
    cfg = default_config()
    cfg.merge_from_file(str(CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def neon_detector(rois: int | None = None) -> nn.Module:
    """The demo's detector; `rois` sampled per image."""
    cfg = neon_config()
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = rois or cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    return build_model(cfg)


def generated_images(count: int, side: int, seed: int) -> Tensor:
    """(count, 3, side, side): smooth shapes and noise; images differ in brightness and contrast."""
    g = torch.Generator().manual_seed(seed)
    shapes = F.interpolate(torch.randn(count, 3, 6, 6, generator=g), size=side, mode="bilinear")
    noise = 0.3 * torch.randn(count, 3, side, side, generator=g)
    brightness, contrast = torch.rand(2, count, 1, 1, 1, generator=g)
    return (shapes + noise) * (0.5 + contrast) + 2 * brightness - 1


def detector_batch(count: int, side: int, seed: int) -> list[dict]:
    """Generated images with boxes around nothing in particular."""
    g = torch.Generator().manual_seed(seed)
    batch = []
    for image in generated_images(count, side, seed):
        size = side * (0.1 + 0.2 * torch.rand(OBJECTS, 2, generator=g))
        corner = (side - size) * torch.rand(OBJECTS, 2, generator=g)
        targets = Instances(
            (side, side),
            gt_boxes=Boxes(torch.cat([corner, corner + size], dim=1)),
            gt_classes=torch.zeros(OBJECTS, dtype=torch.int64),
        )
        pixels = (127 + 50 * image).clamp(0, 255)
        batch.append({"image": pixels, "height": side, "width": side, "instances": targets})
    return batch
