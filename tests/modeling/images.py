"""Features, proposals and ground truth for the heads."""

import copy
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .small import CLASSES, SHAPES, SIZE


def random_boxes(count: int, g: torch.Generator) -> Tensor:
    """(count, 4) x0, y0, x1, y1 in [0, SIZE], sides from 8 to 48 pixels."""
    size = 8 + 40 * torch.rand(count, 2, generator=g)
    corner = (SIZE - size) * torch.rand(count, 2, generator=g)
    return torch.cat([corner, corner + size], dim=1)


def targets(count: int, g: torch.Generator) -> Instances:
    """The ground truth of an image with `count` objects."""
    boxes = random_boxes(count, g)
    inside = boxes[:, None, :2] + (boxes[:, 2:] - boxes[:, :2])[:, None] * torch.rand(
        count, 3, 2, generator=g
    )
    return Instances(
        (SIZE, SIZE),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.randint(CLASSES, (count,), generator=g),
        gt_masks=PolygonMasks([[[x0, y0, x1, y0, x1, y1]] for x0, y0, x1, y1 in boxes.tolist()]),
        gt_keypoints=Keypoints(torch.cat([inside, torch.full((count, 3, 1), 2.0)], dim=2)),
    )


def proposals(count: int, g: torch.Generator) -> Instances:
    """`count` boxes of an image."""
    return Instances(
        (SIZE, SIZE),
        proposal_boxes=Boxes(random_boxes(count, g)),
        objectness_logits=torch.zeros(count),
    )


class Images:
    """Features, proposals and ground truth of images; those of one image depend on its number.

    Args:
        numbers: of the images.
        rois, objects: proposals and ground-truth objects per image.
        seed: of everything.

    Attributes:
        features: name -> (N, C, H, W) leaf with gradients.
        proposals, targets: N `Instances`.
    """

    def __init__(
        self,
        numbers=range(2),
        *,
        rois: int = 10,
        objects: int = 3,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        features = {name: [] for name in SHAPES}
        self.proposals, self.targets = [], []
        for number in numbers:
            g = torch.Generator().manual_seed(1000 * seed + number)
            for name, shape in SHAPES.items():
                side = SIZE // shape.stride
                # Images differ in mean and contrast.
                mean, contrast = torch.randn(2, shape.channels, 1, 1, generator=g)
                noise = torch.randn(shape.channels, side, side, generator=g)
                features[name].append((mean + contrast * noise).to(dtype))
            self.targets.append(targets(objects, g))
            self.proposals.append(proposals(rois, g))
        self.features = {n: torch.stack(f).requires_grad_() for n, f in features.items()}

    def train(self, heads: nn.Module, seed: int = 0) -> dict[str, Tensor]:
        """The losses of one forward in training mode, with sampling from `seed`."""
        torch.manual_seed(seed)
        with EventStorage(), float64_mask_loss():
            args = copy.deepcopy((self.proposals, self.targets))
            return heads.train()(None, self.features, *args)[1]

    @torch.no_grad()
    def detect(self, heads: nn.Module) -> list[Instances]:
        """What the heads find, in eval mode."""
        sizes = [(SIZE, SIZE)] * len(self.proposals)
        images = ImageList(torch.zeros(len(sizes), 3, SIZE, SIZE), sizes)
        return heads.eval()(images, self.features, copy.deepcopy(self.proposals))[0]


def model_inputs(images: int = 2, seed: int = 0, objects: int = 3) -> list[dict]:
    """The input of a whole model."""
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(256, (3, SIZE, SIZE), generator=g).float(),
            "height": SIZE,
            "width": SIZE,
            "instances": targets(objects, g),
        }
        for _ in range(images)
    ]


class SampledImages(Images):
    """Images whose proposals are those that were sampled for training: no random choice is left.

    Args:
        numbers: of the images.
        counts: (RoIs, foreground RoIs) of every image there is, by number. An image without
            foreground has no ground truth.
    """

    def __init__(self, numbers, counts: list[tuple[int, int]], **kwargs) -> None:
        super().__init__(numbers, **kwargs)
        for i, number in enumerate(numbers):
            rois, foreground = counts[number]
            g = torch.Generator().manual_seed(number)
            self.targets[i] = targets(min(foreground, 2), g)
            self.proposals[i] = _sampled(rois, foreground, self.targets[i], g)

    def train(self, heads: nn.Module, seed: int = 0) -> dict[str, Tensor]:
        module = getattr(heads, "module", heads)  # of DistributedDataParallel
        with mock.patch.object(module, "label_and_sample_proposals", lambda p, _: p):
            return super().train(heads, seed)

    def weighted_loss(self, losses: dict[str, Tensor], whole: "SampledImages") -> Tensor:
        """The part of the sum of the `whole` step's losses that comes from these images."""
        return sum(
            loss * self._size(name) / max(whole._size(name), 1) for name, loss in losses.items()
        )

    def _size(self, loss: str) -> int:
        """What a loss is a mean over."""
        if loss == "loss_keypoint":
            return len(self.proposals)
        if loss == "loss_mask":
            return sum(int((p.gt_classes < CLASSES).sum()) for p in self.proposals)
        return sum(len(p) for p in self.proposals)


_cross_entropy = F.binary_cross_entropy_with_logits


def _mask_loss(logits: Tensor, masks: Tensor, **kwargs) -> Tensor:
    return _cross_entropy(logits, masks.to(logits.dtype), **kwargs)


def float64_mask_loss():
    """Detectron2's masks are float32, which would round the loss of float64 logits."""
    return mock.patch.object(F, "binary_cross_entropy_with_logits", _mask_loss)


def _sampled(rois: int, foreground: int, objects: Instances, g: torch.Generator) -> Instances:
    boxes = random_boxes(rois, g)
    sampled = Instances((SIZE, SIZE), objectness_logits=torch.zeros(rois))
    is_background = torch.arange(rois) >= foreground
    if len(objects):
        matched = torch.randint(len(objects), (rois,), generator=g)
        near = objects.gt_boxes.tensor[matched] + torch.randn(rois, 4, generator=g)
        boxes = torch.where(is_background[:, None], boxes, near.clamp(0, SIZE))
        for name, value in objects.get_fields().items():
            sampled.set(name, value[matched])
        sampled.gt_classes[is_background] = CLASSES
    else:
        sampled.gt_classes = torch.full((rois,), CLASSES)
    sampled.proposal_boxes = Boxes(boxes)
    return sampled
