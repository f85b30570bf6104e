"""The normalization batch "worker": all RoIs of one worker, as per-GPU BatchNorm has it."""

from ..partition import Partition, by_image, runs_of_images
from .base import Batch
from .roi_facts import RoIFacts


class WorkerBatch(Batch):
    """The RoIs of a worker, or of each of a process's virtual workers."""

    name = "worker"
    description = "the RoIs of its worker"

    @property
    def needs_images(self) -> bool:
        return self.settings.virtual_workers > 1

    def partition(self, rois: RoIFacts) -> Partition:
        workers = self.settings.virtual_workers
        if workers == 1:
            return Partition.one_group(rois.number, rois.device)
        images = rois.images_per_worker(workers)
        groups, number = runs_of_images(workers, images, max(1, images))
        return by_image(groups, rois.images(), number, rois.device)
