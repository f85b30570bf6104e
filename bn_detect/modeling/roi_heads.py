"""RoI heads that tell the BN layers of their box heads the image and the class of each RoI."""

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..configuration.keys import batch_for
from ..layers import NormalizationBatch
from ..layers.watching import WatchesRoIs, apply_to_rois, give_layout


class _TellsLabels(WatchesRoIs):
    """RoI heads that tell their layouts the classes of the RoIs that are sampled for training."""

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        sample = super().label_and_sample_proposals  # type: ignore[misc]  # of the other parent
        return self._told(sample(proposals, targets))

    def _told(self, sampled: list[Instances]) -> list[Instances]:
        for layout in self.watched_layouts():
            if layout.settings.needs_labels:
                layout.expect_labels([instances.gt_classes for instances in sampled])
        return sampled


@ROI_HEADS_REGISTRY.register()
class BNStandardROIHeads(_TellsLabels, StandardROIHeads):
    """`StandardROIHeads` for a `BNConvFCHead`; mask and keypoint heads inform themselves.

    Other box heads, and `BNConvFCHead` without BN, behave as in the parent.
    """

    # Constants to TorchScript, as detectron2.export makes them of the parent; not inherited.
    mask_on: torch.jit.Final[bool]  # type: ignore[misc]  # TorchScript's, set by the parent
    keypoint_on: torch.jit.Final[bool]  # type: ignore[misc]  # the same

    @configurable
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if hasattr(self.box_head, "roi_layout"):
            self.watch_rois(self.box_head.roi_layout, self.box_pooler)


@ROI_HEADS_REGISTRY.register()
class BNCascadeROIHeads(_TellsLabels, CascadeROIHeads):
    """`CascadeROIHeads` with a `BNConvFCHead` in each stage, which draws its own shuffles."""

    @configurable
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        for stage, head in enumerate(self.box_head):
            if hasattr(head, "roi_layout"):
                head.roi_layout.name = f"box_stage{stage}"
                self.watch_rois(head.roi_layout, self.box_pooler)

    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        return self._told(super()._match_and_label_boxes(proposals, stage, targets))


@ROI_HEADS_REGISTRY.register()
class BNRes5ROIHeads(_TellsLabels, Res5ROIHeads):
    """`Res5ROIHeads` (C4) whose res5 stage has BatchNorm under an explicit normalization batch.

    From a config, the norm of res5 is `MODEL.ROI_BOX_HEAD.NORM`, or where that is "" the backbone's
    `MODEL.RESNETS.NORM` as in the parent.

    Args:
        res5: the stage that computes features per RoI.
        roi_batch: the normalization batch of every BatchNorm in `res5`; None leaves it alone.
        Others: as in the parent.
    """

    @configurable
    def __init__(
        self, *, res5: nn.Module, roi_batch: NormalizationBatch | None = None, **kwargs
    ) -> None:
        super().__init__(res5=res5, **kwargs)
        norm = "" if roi_batch is None else "BN"
        self.roi_layout = give_layout(self.res5, norm, roi_batch, "res5")
        if roi_batch is not None:
            self.watch_rois(self.roi_layout, self.pooler)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "roi_batch": batch_for(cfg, _res5_norm(cfg)),
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
