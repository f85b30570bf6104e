"""Images of a domain, without labels, in batches for a PreciseBN pass."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..data.subset import random_order
from .loader_processes import context
from .trainer import BNTrainer


class TargetImages(Sized):
    """Batches of a fixed random choice of images of a dataset, mapped as for testing.

    The choice is the first N images of one permutation, so that a larger choice holds the smaller
    one. The images are spread evenly over the ranks, in as many batches on each; a batch has at
    least as many images as a worker has in training (where there are so many).

    Args:
        cfg: `SOLVER.IMS_PER_BATCH`, `MODEL.ROI_BN.VIRTUAL_WORKERS`, and what the test mapper reads.
        dataset_name: registered.
        num_images: over all ranks, a multiple of the workers (virtual ones count). None: all
            images (less those that the workers cannot share evenly), in the dataset's own order, in
            batches as large as in training, of which the last may be smaller.
        seed: of the permutation.

    Raises:
        ValueError: another number of images.
    """

    def __init__(
        self, cfg: CfgNode, dataset_name: str, num_images: int | None, *, seed: int = 0
    ) -> None:
        ranks, virtual = comm.get_world_size(), cfg.MODEL.ROI_BN.VIRTUAL_WORKERS
        dicts = get_detection_dataset_dicts([dataset_name], filter_empty=False)
        in_training = max(1, cfg.SOLVER.IMS_PER_BATCH // ranks // virtual)
        if num_images is None:
            own = torch.arange(len(dicts) // (ranks * virtual) * ranks * virtual)
            batches = own[comm.get_rank() :: ranks].split(in_training * virtual)
        else:
            check_num_images(num_images, ranks * virtual, len(dicts), dataset_name)
            order = torch.tensor(random_order(len(dicts), seed))
            own = order[:num_images][comm.get_rank() :: ranks]
            units = own.view(-1, virtual)  # a batch is split into the virtual workers
            batches = units.tensor_split(max(1, len(units) // in_training))
        self._batches = [batch.flatten().tolist() for batch in batches]
        self._dataset = MapDataset(
            DatasetFromList(dicts, copy=False), BNTrainer.build_mapper(cfg, is_train=False)
        )
        self._num_workers = cfg.DATALOADER.NUM_WORKERS

    def __len__(self) -> int:
        """Batches of this rank, the same on each."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return iter(
            DataLoader(
                self._dataset,
                batch_sampler=self._batches,
                num_workers=self._num_workers,
                multiprocessing_context=context(self._num_workers),
                collate_fn=trivial_batch_collator,
            )
        )


def check_num_images(number: int, workers: int, available: int, dataset_name: str) -> None:
    """Raise ValueError unless `workers` can share `number` of the available images evenly."""
    if not workers <= number <= available:
        raise ValueError(
            f"{number} images for population statistics of {dataset_name!r}: it must be at least "
            f"{workers}, the number of workers, and at most its {available}"
        )
    if number % workers:
        down = number // workers * workers
        near = [str(n) for n in (down, down + workers) if workers <= n <= available]
        raise ValueError(
            f"{number} images for population statistics of {dataset_name!r}: {workers} workers "
            f"cannot share them evenly; use {' or '.join(near)}"
        )
