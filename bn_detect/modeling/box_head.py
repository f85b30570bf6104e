"""The box head with an explicit normalization batch."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from torch import Tensor

from ..configuration.keys import batch_for
from ..layers import NormalizationBatch
from ..layers.watching import apply_to_rois, give_layout


@ROI_BOX_HEAD_REGISTRY.register()
class BNConvFCHead(FastRCNNConvFCHead):
    """`FastRCNNConvFCHead` whose BatchNorm layers have an explicit normalization batch.

    Args:
        input_shape, conv_dims, fc_dims, conv_norm: as in the parent.
        roi_batch: the normalization batch where `conv_norm` is "BN"; other norms are the parent's.

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
        super().__init__(input_shape, conv_norm=conv_norm, **kwargs)
        self.roi_layout = give_layout(self, conv_norm, roi_batch, "box")

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "roi_batch": batch_for(cfg, cfg.MODEL.ROI_BOX_HEAD.NORM),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled features (R, C, H, W) to (R, fc_dim), or (R, conv_dim, H, W) without fc."""
        if not torch.jit.is_scripting():
            return apply_to_rois(self.roi_layout, super().forward, x, training=self.training)
        for layer in self:
            x = layer(x)
        return x
