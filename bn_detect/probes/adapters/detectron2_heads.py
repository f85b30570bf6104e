"""The box heads of Detectron2."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from torch import Tensor, nn

from ..rois import RoIs
from .heads import Outputs, RoIHead, describe, image_of_each


class Detectron2Head(RoIHead):
    """The box head of a `GeneralizedRCNN`; batches are lists of dicts with "instances"."""

    synchronized = (nn.SyncBatchNorm, NaiveSyncBatchNorm)

    @classmethod
    def adapt(cls, model: nn.Module) -> "Detectron2Head | None":
        heads = getattr(model, "roi_heads", None)
        return cls(model) if isinstance(heads, StandardROIHeads | Res5ROIHeads) else None

    def __init__(self, model: Any) -> None:
        self._model, self._heads = model, model.roi_heads
        heads = self._heads
        self._predictor: Any = heads.box_predictor
        self._layers: Callable[[Tensor], Tensor]
        if isinstance(heads, Res5ROIHeads):
            layers, self._pooler = heads.res5, heads.pooler
            self._layers = lambda x: heads.res5(x).mean(dim=[2, 3])
        else:
            layers, self._pooler = heads.box_head, heads.box_pooler
            if isinstance(heads, CascadeROIHeads):
                layers, self._predictor = layers[0], self._predictor[0]
            self._layers = layers
        super().__init__(model, layers, self._predictor)
        self.background = heads.num_classes
        self.proposals = model.proposal_generator
        self.sigmoid = getattr(self._predictor, "use_sigmoid_ce", False)

    def forward_model(self, batch: Any) -> Any:
        return self._model(batch)

    def _sample(self, batch: Any, times: int) -> list[RoIs]:
        is_list = isinstance(batch, Sequence) and len(batch) > 0
        if not is_list or not all(isinstance(x, dict) and "instances" in x for x in batch):
            raise ValueError(
                "a probe needs batches with ground truth: lists of dicts with 'image' and "
                f"'instances'; got {describe(batch)}"
            )
        images = self._model.preprocess_image(batch)
        truth = [x["instances"].to(self.device) for x in batch]
        features = self._model.backbone(images.tensor)
        if self.proposals is not None:
            proposals, _ = self.proposals(images, features, truth)
        else:
            proposals = [x["proposals"].to(self.device) for x in batch]
        features = [features[name] for name in self._heads.in_features]
        scale = torch.tensor(
            [
                [x.get("width", w) / w, x.get("height", h) / h]
                for x, (h, w) in zip(batch, images.image_sizes, strict=True)
            ],
            device=self.device,
        )
        of_images: dict[str, Any] = {
            "objects": tuple(t.gt_classes.cpu() for t in truth),
            "files": tuple(x.get("file_name") for x in batch),
            "scale": scale,
        }
        samples = []
        for _ in range(times):
            sampled = self._heads.label_and_sample_proposals(proposals, truth)
            labels = torch.cat([s.gt_classes for s in sampled]).cpu()
            # An image without objects has no ground-truth boxes to compare with.
            of_sampled = [s.gt_boxes if s.has("gt_boxes") else s.proposal_boxes for s in sampled]
            boxes = torch.cat([s.proposal_boxes.tensor for s in sampled])
            targets = torch.cat([each.tensor for each in of_sampled])
            foreground = labels < self.background
            rois = RoIs(
                features=self._pooler(features, [s.proposal_boxes for s in sampled]),
                image=image_of_each([len(s) for s in sampled]),
                labels=labels,
                foreground=foreground,
                ground_truth=foreground & (boxes == targets).all(1).cpu(),
                boxes=boxes,
                targets=targets,
                **of_images,
            )
            samples.append(rois)
        return samples

    def _forward(self, features: Tensor) -> Outputs:
        return Outputs(*self._predictor(self._layers(features)))

    def box_loss(self, outputs: Outputs, rois: RoIs, index: int) -> float:
        one = slice(index, index + 1)
        loss = self._predictor.box_reg_loss(
            rois.boxes[one], rois.targets[one], outputs.deltas, rois.labels[one].to(self.device)
        )
        return float(loss)
