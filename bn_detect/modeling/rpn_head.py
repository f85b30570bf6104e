"""RPN head with a norm; its BatchNorm knows the feature levels."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import RPN_HEAD_REGISTRY
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from torch import Tensor, nn

from ..configuration.keys import level_choices
from .levels import level_norm, over_levels


@RPN_HEAD_REGISTRY.register()
class BNRPNHead(StandardRPNHead):
    """`StandardRPNHead` with a norm after each convolution of its tower.

    Args:
        num_levels: number of feature levels that share the head.
        norm: "BN" (the statistics of a worker in training) and "SyncBN" (of all workers) are
            `LevelBatchNorm2d` over the levels; others see one level at a time, "" is none.
        batch, population, affine, moving_average: see `LevelBatchNorm2d`.
        Others as in the parent.
    """

    @configurable
    def __init__(
        self,
        *,
        num_levels: int,
        norm: str = "",
        batch: str = "shared",
        population: str = "shared",
        affine: str = "shared",
        moving_average: str = "in_turn",
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        make_norm = level_norm(
            norm,
            num_levels,
            batch=batch,
            population=population,
            affine=affine,
            moving_average=moving_average,
        )
        for conv in self._convs():
            conv.norm = get_norm(make_norm or norm, conv.out_channels)
        self._over_levels = make_norm is not None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "num_levels": len(input_shape),
            "norm": cfg.MODEL.RPN.NORM,
            **level_choices(cfg),
        }

    def _convs(self) -> list[Conv2d]:
        return [self.conv] if isinstance(self.conv, Conv2d) else list(self.conv)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map each level (N, C, Hi, Wi) to logits (N, A, Hi, Wi) and deltas (N, 4 A, Hi, Wi)."""
        if not self._over_levels:
            return super().forward(features)
        for conv in self._convs():
            plain = [nn.Conv2d.forward(conv, x) for x in features]
            features = over_levels([conv.norm, conv.activation], plain)
        return (
            over_levels([self.objectness_logits], features),
            over_levels([self.anchor_deltas], features),
        )
