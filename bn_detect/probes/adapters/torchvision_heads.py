"""The box head of torchvision's detection models."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads

from ..rois import RoIs
from .heads import Outputs, RoIHead, describe, image_of_each


class TorchvisionHead(RoIHead):
    """The box head of a `GeneralizedRCNN`; batches are (images, targets), background is class 0."""

    background = 0

    @classmethod
    def adapt(cls, model: nn.Module) -> "TorchvisionHead | None":
        return cls(model) if isinstance(getattr(model, "roi_heads", None), RoIHeads) else None

    def __init__(self, model: Any) -> None:
        self._model, self._heads = model, model.roi_heads
        super().__init__(model, self._heads.box_head, self._heads.box_predictor)
        self.proposals = model.rpn

    def forward_model(self, batch: Any) -> Any:
        return self._model(*batch)

    def _sample(self, batch: Any, times: int) -> list[RoIs]:
        if not isinstance(batch, Sequence) or len(batch) != 2 or batch[1] is None:
            raise ValueError(
                "a probe of a torchvision model needs batches of (images, targets); got "
                f"{describe(batch)}"
            )
        images = [image.to(self.device) for image in batch[0]]
        truth = [
            {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in target.items()}
            for target in batch[1]
        ]
        sizes = [image.shape[-2:] for image in images]
        resized, truth = self._model.transform(images, truth)
        features = self._model.backbone(resized.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        proposals, _ = self._model.rpn(resized, features, truth)
        scale = torch.tensor(
            [
                [width / w, height / h]
                for (height, width), (h, w) in zip(sizes, resized.image_sizes, strict=True)
            ],
            device=self.device,
        )
        of_images: dict[str, Any] = {
            "objects": tuple(t["labels"].cpu() for t in truth),
            "files": tuple(t.get("file_name") for t in truth),
            "scale": scale,
        }
        samples = []
        for _ in range(times):
            boxes, _, labels, targets = self._heads.select_training_samples(proposals, truth)
            joined, deltas = torch.cat(labels).cpu(), torch.cat(targets)
            foreground = joined != self.background
            rois = RoIs(
                features=self._heads.box_roi_pool(features, boxes, resized.image_sizes),
                image=image_of_each([len(b) for b in boxes]),
                labels=joined,
                foreground=foreground,
                ground_truth=foreground & (deltas == 0).all(1).cpu(),
                boxes=torch.cat(boxes),
                targets=deltas,
                **of_images,
            )
            samples.append(rois)
        return samples

    def _forward(self, features: Tensor) -> Outputs:
        return Outputs(*self._heads.box_predictor(self._heads.box_head(features)))

    def box_loss(self, outputs: Outputs, rois: RoIs, index: int) -> float:
        deltas = outputs.deltas.reshape(-1, 4)[rois.labels[index]]
        return F.smooth_l1_loss(deltas, rois.targets[index], beta=1 / 9, reduction="sum").item()
