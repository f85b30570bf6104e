"""The normalization batch "images": a few images of one worker."""

from ..partition import Partition, by_image, runs_of_images
from .base import Batch
from .roi_facts import RoIFacts


class ImagesBatch(Batch):
    """`images_per_group` consecutive images of a worker; its last group may be smaller."""

    name = "images"
    description = "the RoIs of its image (or of `IMAGES_PER_GROUP` images)"

    @property
    def needs_images(self) -> bool:
        return True

    def check_images(self, images: int) -> None:
        size = self.settings.images_per_group
        if images < size:
            raise ValueError(
                f"images_per_group is {size}, but a worker has {images} images in a step; use more "
                "images or fewer workers"
            )

    def partition(self, rois: RoIFacts) -> Partition:
        workers = self.settings.virtual_workers
        per_worker = rois.images_per_worker(workers)
        groups, number = runs_of_images(workers, per_worker, self.settings.images_per_group)
        return by_image(groups, rois.images(), number, rois.device)
