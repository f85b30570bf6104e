"""The keypoint head with an optional norm and an explicit normalization batch."""

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm, interpolate
from detectron2.modeling.roi_heads import ROI_KEYPOINT_HEAD_REGISTRY, KRCNNConvDeconvUpsampleHead
from torch import Tensor

from ..configuration.keys import batch_for
from ..layers import NormalizationBatch
from ..layers.watching import WatchesRoIs, apply_to_rois, give_layout


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class BNKRCNNConvDeconvUpsampleHead(WatchesRoIs, KRCNNConvDeconvUpsampleHead):
    """`KRCNNConvDeconvUpsampleHead` with an optional norm after each of its 3x3 convolutions.

    Args:
        input_shape, num_keypoints, conv_dims and others: as in the parent.
        conv_norm: "" (the parent, which has no norm), "BN" under `roi_batch`, or another norm of
            `detectron2.layers.get_norm`. A convolution with a norm has no bias.
        roi_batch: the normalization batch where `conv_norm` is "BN".

    Raises:
        ValueError: a `roi_batch` of another kind, or with another norm than "BN".
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_norm: str = "",
        roi_batch: NormalizationBatch | None = None,
        **kwargs,
    ) -> None:
        super().__init__(input_shape, **kwargs)
        if conv_norm:
            for conv in (m for m in self if isinstance(m, Conv2d)):
                conv.norm = get_norm(conv_norm, conv.out_channels)
                conv.bias = None
        self.roi_layout = give_layout(self, conv_norm, roi_batch, "keypoint")
        if conv_norm == "BN":
            self.watch_rois(self.roi_layout, self)  # forward(x, instances)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "conv_norm": cfg.MODEL.ROI_KEYPOINT_HEAD.NORM,
            "roi_batch": batch_for(cfg, cfg.MODEL.ROI_KEYPOINT_HEAD.NORM),
        }

    def layers(self, x: Tensor) -> Tensor:
        """Map pooled features (R, C, H, W) to heatmap logits (R, num_keypoints, 4H, 4W)."""
        if not torch.jit.is_scripting():
            return apply_to_rois(self.roi_layout, super().layers, x, training=self.training)
        for layer in self:
            x = layer(x)
        return interpolate(x, scale_factor=self.up_scale, mode="bilinear", align_corners=False)
