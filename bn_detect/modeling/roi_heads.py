"""RoI heads that tell the BN layers of their box heads which RoI belongs to which image."""

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..configuration.keys import normalization_batch
from ..layers import NormalizationBatch, use_layout
from ..layers.watching import WatchesRoIs, apply_to_rois, head_layout


@ROI_HEADS_REGISTRY.register()
class BNStandardROIHeads(WatchesRoIs, StandardROIHeads):
    """`StandardROIHeads` for a `BNConvFCHead`; mask and keypoint heads inform themselves.

    Other box heads, and `BNConvFCHead` without BN, behave as in the parent.
    """

    # Constants to TorchScript, as detectron2.export makes them of the parent; not inherited.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]

    @configurable
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if hasattr(self.box_head, "roi_layout"):
            self.watch_rois(self.box_head.roi_layout, self.box_pooler)


@ROI_HEADS_REGISTRY.register()
class BNCascadeROIHeads(WatchesRoIs, CascadeROIHeads):
    """`CascadeROIHeads` for `BNConvFCHead`s: one per stage, with shuffles of their own."""

    @configurable
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        for stage, head in enumerate(self.box_head):
            if hasattr(head, "roi_layout"):
                head.roi_layout.name = f"box_stage{stage}"
                self.watch_rois(head.roi_layout, self.box_pooler)


@ROI_HEADS_REGISTRY.register()
class BNRes5ROIHeads(WatchesRoIs, Res5ROIHeads):
    """`Res5ROIHeads` (C4) whose res5 stage has BatchNorm under an explicit normalization batch.

    From a config, the norm of res5 is `MODEL.ROI_BOX_HEAD.NORM`, or where that is "" the backbone's
    `MODEL.RESNETS.NORM` as in the parent.

    Args:
        res5: the stage that computes features per RoI.
        roi_batch: the normalization batch of every BatchNorm in `res5`; None leaves it as it is.
        Others as in the parent.
    """

    @configurable
    def __init__(
        self, *, res5: nn.Module, roi_batch: NormalizationBatch | None = None, **kwargs
    ) -> None:
        super().__init__(res5=res5, **kwargs)
        self.roi_layout = head_layout("BN", roi_batch, "res5")
        if roi_batch is not None:
            use_layout(self.res5, self.roi_layout)
            self.watch_rois(self.roi_layout, self.pooler)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        has_bn = _res5_norm(cfg) == "BN"
        return {
            **super().from_config(cfg, input_shape),
            "roi_batch": normalization_batch(cfg) if has_bn else None,
        }

    @classmethod
    def _build_res5_block(cls, cfg):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RESNETS.NORM = _res5_norm(cfg)
        return super()._build_res5_block(cfg)

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        x = self.pooler(features, boxes)
        if not torch.jit.is_scripting():
            return apply_to_rois(self.roi_layout, self.res5, x, training=self.training)
        return self.res5(x)


def _res5_norm(cfg) -> str:
    return cfg.MODEL.ROI_BOX_HEAD.NORM or cfg.MODEL.RESNETS.NORM
