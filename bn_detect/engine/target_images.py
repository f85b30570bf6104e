"""Images of a domain, without labels, in batches for a PreciseBN pass."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from .loader_processes import context
from .trainer import BNTrainer


class TargetImages(Sized):
    """Batches of a fixed random choice of images of a dataset, mapped as for testing.

    The first N images of one permutation: a larger choice holds the smaller one. They are spread
    evenly over the ranks, in as many batches on each, of at least as many images as a worker has in
    training (where there are so many).

    Args:
        cfg: `SOLVER.IMS_PER_BATCH`, `MODEL.ROI_BN.VIRTUAL_WORKERS`, and what the test mapper reads.
        dataset_name: registered.
        num_images: over all ranks.
        seed: of the permutation.

    Attributes:
        num_images: that are used, over all ranks: the largest multiple of workers (virtual ones
            count) up to `num_images`.

    Raises:
        ValueError: more images than the dataset has, or fewer than there are workers.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, num_images: int, *, seed: int = 0) -> None:
        ranks, virtual = comm.get_world_size(), cfg.MODEL.ROI_BN.VIRTUAL_WORKERS
        dicts = get_detection_dataset_dicts([dataset_name], filter_empty=False)
        if not ranks * virtual <= num_images <= len(dicts):
            raise ValueError(
                f"{num_images} images for population statistics of {dataset_name!r}: it must be at "
                f"least {ranks * virtual}, the number of workers, and at most its {len(dicts)}"
            )
        self.num_images = num_images // (ranks * virtual) * (ranks * virtual)
        order = torch.randperm(len(dicts), generator=torch.Generator().manual_seed(seed))
        own = order[: self.num_images][comm.get_rank() :: ranks]
        units = own.view(-1, virtual)  # a batch is split into the virtual workers
        in_training = max(1, cfg.SOLVER.IMS_PER_BATCH // ranks // virtual)
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
