"""RoIs that companions are drawn from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rois import Place, RoIs


class Pool:
    """RoIs of several batches, numbered through; their features stay where they are.

    Args:
        same_images: the batches are samples of the same images. A later one then only adds RoIs
            that no earlier one has, and is drawn from where those have too few.

    Attributes:
        labels, foreground, boxes: as in `RoIs`.
        image: numbered through, or as in each batch of the same images.
        free: (R,) bool, which RoIs may be drawn.
    """

    def __init__(self, batches: Sequence[RoIs], *, same_images: bool = False) -> None:
        self._batches, self._same_images = batches, same_images
        images = [0 if same_images else batch.num_images for batch in batches]
        starts = [sum(images[:i]) for i in range(len(batches))]
        self.num_images = batches[0].num_images if same_images else sum(images)
        self._batch = torch.cat([torch.full((len(b),), i) for i, b in enumerate(batches)])
        self._index = torch.cat([torch.arange(len(b)) for b in batches])
        self.labels = torch.cat([b.labels for b in batches])
        self.foreground = torch.cat([b.foreground for b in batches])
        self.image = torch.cat([b.image + s for b, s in zip(batches, starts, strict=True)])
        self.boxes = torch.cat([b.boxes for b in batches])
        self.free = torch.ones(len(self), dtype=torch.bool)
        if same_images:
            for image in range(self.num_images):
                rows = (self.image == image).nonzero()[:, 0]
                same = (self.boxes[rows, None] == self.boxes[rows]).all(2).cpu()
                earlier = self._batch[rows, None] > self._batch[rows]
                self.free[rows] = ~(same & earlier).any(1)

    def __len__(self) -> int:
        return len(self.labels)

    def features(self, picks: Tensor) -> Tensor:
        """Return the features of the RoIs `picks`, (M, C, h, w)."""
        batch, index = self._batch[picks], self._index[picks]
        parts = torch.cat([b.features[index[batch == i]] for i, b in enumerate(self._batches)])
        features = torch.empty_like(parts)
        features[batch.argsort(stable=True)] = parts
        return features

    def place(self, pick: int) -> Place:
        """Return where a RoI lies."""
        return self._batches[int(self._batch[pick])].place(int(self._index[pick]))

    def shuffled(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Return the indices of the free RoIs where `chosen` (R,) bool, in random order."""
        indices = shuffled(chosen & self.free, generator)
        return indices[self._batch[indices].argsort(stable=True)] if self._same_images else indices

    def at(self, rois: RoIs, index: int) -> Tensor:
        """Return (R,) bool: RoIs with the image number and the box of one of `rois`."""
        same_box = (self.boxes == rois.boxes[index]).all(1).cpu()
        return same_box & (self.image == rois.image[index])


def shuffled(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Return the indices where `chosen`, in random order."""
    indices = chosen.nonzero()[:, 0]
    return indices[torch.randperm(len(indices), generator=generator)]
