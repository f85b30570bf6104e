"""Heads, models and backbones that Detectron2 finds by name once bn_detect is imported."""

from .. import needs_detectron2  # noqa: F401
from .backbone import (
    build_lean_resnet_backbone,
    build_lean_resnet_fpn_backbone,
    build_small_conv_backbone,
)
from .box_head import BNConvFCHead
from .image_classifier import BNImageClassifier
from .keypoint_head import BNKRCNNConvDeconvUpsampleHead
from .mask_head import BNMaskConvUpsampleHead
from .retinanet_head import BNRetinaNet, BNRetinaNetHead
from .roi_heads import BNCascadeROIHeads, BNRes5ROIHeads, BNStandardROIHeads
from .rpn_head import BNRPNHead

__all__ = [
    "BNCascadeROIHeads",
    "BNConvFCHead",
    "BNImageClassifier",
    "BNKRCNNConvDeconvUpsampleHead",
    "BNMaskConvUpsampleHead",
    "BNRPNHead",
    "BNRes5ROIHeads",
    "BNRetinaNet",
    "BNRetinaNetHead",
    "BNStandardROIHeads",
    "build_lean_resnet_backbone",
    "build_lean_resnet_fpn_backbone",
    "build_small_conv_backbone",
]
