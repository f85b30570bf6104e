"""Batches for the probes."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from tqdm import tqdm

from ..data import BNDatasetMapper


class ProbeLoader:
    """Batches of Detectron2's dicts with "instances", the same ones in every pass.

    In a fixed random order; images that do not fill a batch are left out.
    """

    def __init__(
        self, dicts: list[dict], mapper: BNDatasetMapper, images_per_batch: int, seed: int
    ) -> None:
        self._dicts, self._mapper, self._size = dicts, mapper, images_per_batch
        self._order = torch.randperm(
            len(dicts), generator=torch.Generator().manual_seed(seed)
        ).tolist()

    def __len__(self) -> int:
        return len(self._dicts) // self._size

    def __iter__(self) -> Iterator[list[dict]]:
        for start in range(0, len(self) * self._size, self._size):
            chosen = self._order[start : start + self._size]
            yield [self._mapper(self._dicts[index]) for index in chosen]


def probe_loader(
    cfg: CfgNode, dataset_name: str, images_per_batch: int, *, seed: int = 0
) -> ProbeLoader:
    """Images of a registered dataset with their ground truth, resized as for testing.

    Nothing else is random but the order, which `seed` fixes.

    Raises:
        ValueError: fewer images than a batch needs.
    """
    dicts = get_detection_dataset_dicts(
        [dataset_name], filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    if not 1 <= images_per_batch <= len(dicts):
        raise ValueError(
            f"images_per_batch is {images_per_batch}, but {dataset_name} has {len(dicts)} images"
        )
    resizing = build_augmentation(cfg, is_train=False)
    mapper = BNDatasetMapper(cfg, is_train=True, augmentations=resizing)
    return ProbeLoader(dicts, mapper, images_per_batch, seed)


def take(loader: Iterable, num_batches: int, doing: str) -> Iterator[Any]:
    """The first batches of a loader, behind a progress bar that says what is being done.

    Raises:
        ValueError: `num_batches` below 1, or a loader that ends early.
    """
    if num_batches < 1:
        raise ValueError(f"num_batches is {num_batches}; it must be at least 1")
    batches, end = iter(loader), object()
    for done in tqdm(range(num_batches), desc=doing, leave=False):
        batch = next(batches, end)
        if batch is end:
            raise ValueError(f"the loader ended after {done} of num_batches = {num_batches}")
        yield batch
