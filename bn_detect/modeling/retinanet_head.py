"""RetinaNet whose head has BatchNorm that knows the feature levels."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor

from ..configuration.keys import level_choices
from .levels import level_norm, over_levels


class BNRetinaNetHead(RetinaNetHead):
    """`RetinaNetHead` whose BatchNorm layers are `LevelBatchNorm2d` over the feature levels.

    Args:
        input_shape: shape of each feature level.
        norm: "BN" (the statistics of a worker in training) or "SyncBN" (of all workers) makes them;
            other norms are the parent's.
        batch, population, affine, moving_average: see `LevelBatchNorm2d`.
        Others as in the parent.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        norm: str = "",
        batch: str = "shared",
        population: str = "shared",
        affine: str = "shared",
        moving_average: str = "in_turn",
        **kwargs,
    ) -> None:
        make_norm = level_norm(
            norm,
            len(input_shape),
            batch=batch,
            population=population,
            affine=affine,
            moving_average=moving_average,
        )
        super().__init__(input_shape=input_shape, norm=make_norm or norm, **kwargs)
        self._over_levels = make_norm is not None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        return {**super().from_config(cfg, input_shape), **level_choices(cfg)}

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map each level (N, C, Hi, Wi) to logits (N, A K, Hi, Wi) and deltas (N, 4 A, Hi, Wi)."""
        if not self._over_levels:
            return super().forward(features)
        logits = over_levels([*self.cls_subnet, self.cls_score], features)
        deltas = over_levels([*self.bbox_subnet, self.bbox_pred], features)
        return logits, deltas


@META_ARCH_REGISTRY.register()
class BNRetinaNet(RetinaNet):
    """`RetinaNet` with a `BNRetinaNetHead` when it is built from a config."""

    @configurable
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        made = super().from_config(cfg)
        shapes = made["backbone"].output_shape()
        head = BNRetinaNetHead(cfg, [shapes[name] for name in made["head_in_features"]])
        return {**made, "head": head}
