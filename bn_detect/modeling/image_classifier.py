"""An image classifier with an explicit normalization batch over the images."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..configuration.keys import batch_for
from ..layers import ImageLayout, NormalizationBatch, use_layout
from ..layers.watching import apply_to_rois


@META_ARCH_REGISTRY.register()
class BNImageClassifier(nn.Module):
    """A backbone, then the mean over positions, then a linear layer.

    From a config, `MODEL.ROI_BN` is the normalization batch of the backbone where
    `MODEL.RESNETS.NORM` is "BN"; images take the place of RoIs. With EXCHANGE "features" the images
    themselves move between the workers.

    Args:
        backbone: its last output is used.
        num_classes: more than 1.
        pixel_mean, pixel_std: per channel of the images, in grey levels.
        image_batch: the normalization batch of every BatchNorm of the backbone; None leaves the
            backbone as it is.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        image_batch: NormalizationBatch | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        self._feature, shape = list(backbone.output_shape().items())[-1]
        self.linear = nn.Linear(shape.channels, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.image_layout = ImageLayout(image_batch, name="images")
        if image_batch is not None:
            use_layout(self.backbone, self.image_layout)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.CLASSIFIER.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "image_batch": batch_for(cfg, cfg.MODEL.RESNETS.NORM),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """Return losses in training, and predictions otherwise.

        Args:
            batched_inputs: one dict per image with "image", (C, H, W) in grey levels, all of one
                size; in training also with "label", in [0, num_classes).

        Returns:
            In training {"loss_cls": the mean cross-entropy in nats}; otherwise one dict per image
            with "scores": (num_classes,) logits.

        Raises:
            ValueError: the images have several sizes.
        """
        x = self._images(batched_inputs)
        if not self.training:
            return [{"scores": scores} for scores in self._logits(x)]
        labels = torch.tensor([d["label"] for d in batched_inputs], device=self.device)
        if self.image_layout.settings.needs_labels:
            self.image_layout.record([1] * len(labels), labels)
        logits = self._logits(x)
        wrong = (logits.detach().argmax(1) != labels).float().mean()
        get_event_storage().put_scalar("classifier/error", 100 * wrong.item())
        return {"loss_cls": F.cross_entropy(logits.float(), labels)}

    def _images(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        images = [d["image"] for d in batched_inputs]
        sizes = {tuple(image.shape[1:]) for image in images}
        if len(sizes) > 1:
            raise ValueError(
                f"images of one batch have sizes {sorted(sizes)}; with INPUT.CROP.ENABLED they are "
                "resized and cropped to INPUT.CROP.SIZE"
            )
        x = torch.stack(images).to(self.device, torch.float32)
        return (x - self.pixel_mean) / self.pixel_std

    def _logits(self, x: Tensor) -> Tensor:
        return apply_to_rois(self.image_layout, self._network, x, training=self.training)

    def _network(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        return self.linear(self.backbone(x)[self._feature].mean((2, 3)))
