"""The facts that a normalization batch may ask about the RoIs that it partitions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class RoIFacts:
    """The RoIs of this process in one forward of a head.

    Attributes:
        head: name of the head, for messages.
        number: R, RoIs of this process.
        device: where the groups of the RoIs are needed.
        recorded: RoIs per image, or None where nobody recorded them.
        recorded_labels: (R,) the class of each RoI, or None where nobody recorded them.
        process_group: all workers; None where there is only this process.
        generator: returns a CPU generator that is in the same state on every process, and in
            another state in each forward.
    """

    head: str
    number: int
    device: torch.device
    recorded: tuple[int, ...] | None
    recorded_labels: Tensor | None
    process_group: dist.ProcessGroup | None
    generator: Callable[[], torch.Generator]

    def images(self) -> tuple[int, ...]:
        """Return how many RoIs each image has, in their order.

        Raises:
            ValueError: nobody recorded them, or they do not add up to `number`.
        """
        if self.recorded is None:
            raise ValueError(
                f"{self.head}: this normalization batch needs to know the image of each RoI, but "
                "no pooler was watched: pass the head's pooler to convert_roi_batchnorm(..., "
                "pooler=...), or call layout.watch(pooler)"
            )
        if sum(self.recorded) != self.number:
            raise ValueError(
                f"{self.head}: the layer got {self.number} RoIs, but its pooler made "
                f"{sum(self.recorded)} in the latest call; a layer that sees other RoIs than its "
                "pooler's needs a RoILayout of its own, and a layer before the pooler (say, of the "
                "backbone) sees images: convert the head behind the pooler by itself"
            )
        return self.recorded

    def images_per_worker(self, workers: int) -> int:
        """Return how many images each of this process's virtual workers has.

        Raises:
            ValueError: `workers` does not divide the images, or see `images`.
        """
        images = len(self.images())
        if images % workers:
            raise ValueError(
                f"MODEL.ROI_BN.VIRTUAL_WORKERS is {workers}, which does not divide the {images} "
                f"images of this worker's batch ({self.head})"
            )
        return images // workers

    def labels(self) -> Tensor:
        """Return the class of each RoI, (R,) int64 on the CPU, as the head's ground truth says.

        Raises:
            ValueError: nobody recorded them, or there are not `number` of them.
        """
        labels = self.recorded_labels
        if labels is None:
            raise ValueError(
                f"{self.head}: this normalization batch needs the class of each RoI, which the "
                "heads of bn_detect.modeling record in training; elsewhere call "
                "layout.record(rois_per_image, labels) before the head runs"
            )
        if len(labels) != self.number:
            raise ValueError(
                f"{self.head}: the layer got {self.number} RoIs, but {len(labels)} labels were "
                "recorded"
            )
        return labels.cpu()
