"""The RoIs of one batch, as the probes see them."""

from dataclasses import dataclass

import torch
from torch import Tensor

Place = tuple[str | None, tuple[float, ...]]  # an image file, and x0, y0, x1, y1 in its pixels


@dataclass(frozen=True)
class RoIs:
    """The RoIs of one batch of B images as the box head receives them, sampled as in training.

    Attributes:
        features: (R, C, h, w), on the model's device, as are `boxes`, `targets` and `scale`; the
            other tensors are on the CPU.
        image: (R,) index of the image in [0, B), ascending.
        labels: (R,) class indices in the model's own convention, background included.
        foreground: (R,) bool.
        ground_truth: (R,) bool, foreground whose box is that of an object in the ground truth.
        boxes: (R, 4) x0, y0, x1, y1 in pixels of the network's input.
        targets: (R, 4) what the box loss compares outputs with; meaningless for background.
        objects: the classes of the ground truth, one tensor per image.
        files: names of the image files; None where unknown.
        scale: (B, 2) pixels of the original image per pixel of the network's input, in x and y.
    """

    features: Tensor
    image: Tensor
    labels: Tensor
    foreground: Tensor
    ground_truth: Tensor
    boxes: Tensor
    targets: Tensor
    objects: tuple[Tensor, ...]
    files: tuple[str | None, ...]
    scale: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_images(self) -> int:
        return len(self.objects)

    @property
    def per_image(self) -> list[int]:
        """The number of RoIs of each image."""
        counts: list[int] = torch.bincount(self.image, minlength=self.num_images).tolist()
        return counts

    def place(self, index: int) -> Place:
        """Return the file of a RoI's image, and its box in pixels of that file."""
        image = self.image[index]
        box = self.boxes[index] * self.scale[image].repeat(2)
        return self.files[image], tuple(box.tolist())
