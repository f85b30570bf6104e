"""The heads and backbones that importing bn_detect registers with Detectron2."""

from .backbone import build_lean_resnet_fpn_backbone, build_small_conv_backbone
from .box_head import BNConvFCHead
from .keypoint_head import BNKRCNNConvDeconvUpsampleHead
from .mask_head import BNMaskConvUpsampleHead
from .roi_heads import BNCascadeROIHeads, BNRes5ROIHeads, BNStandardROIHeads

__all__ = [
    "BNCascadeROIHeads",
    "BNConvFCHead",
    "BNKRCNNConvDeconvUpsampleHead",
    "BNMaskConvUpsampleHead",
    "BNRes5ROIHeads",
    "BNStandardROIHeads",
    "build_lean_resnet_fpn_backbone",
    "build_small_conv_backbone",
]
