"""Batches of datasets that are registered with Detectron2."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation

from ...data import BNDatasetMapper
from ...data.proposals import dataset_dicts, proposal_files

Mapper = Callable[[dict[str, Any]], Any]


class ProbeLoader:
    """Batches of Detectron2's dicts with "instances", the same ones in every pass.

    The order of the images is random and fixed; images that do not fill a batch are left out.
    """

    def __init__(
        self,
        dicts: list[dict[str, Any]],
        mapper: Mapper,
        images_per_batch: int,
        seed: int,
    ) -> None:
        self._dicts, self._mapper, self._size = dicts, mapper, images_per_batch
        generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(dicts), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self._dicts) // self._size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for start in range(0, len(self) * self._size, self._size):
            chosen = self._order[start : start + self._size]
            yield [self._mapper(self._dicts[index]) for index in chosen]


def probe_loader(
    cfg: CfgNode,
    dataset_name: str,
    images_per_batch: int,
    *,
    mapper: Mapper | None = None,
    seed: int = 0,
) -> ProbeLoader:
    """Return a loader of a registered dataset with ground truth, its images resized as for testing.

    Only the order of the images is random; `seed` fixes it.

    Args:
        mapper: from a dataset dict to what the model is trained with; None: as `cfg` says.

    Raises:
        ValueError: the dataset has fewer images than a batch needs, or no file of proposals where
            the model needs one.
    """
    files = proposal_files(cfg, dataset_name)
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    dicts = dataset_dicts([dataset_name], files, filter_empty=filter_empty)
    if not 1 <= images_per_batch <= len(dicts):
        raise ValueError(
            f"images_per_batch is {images_per_batch}, but {dataset_name} has {len(dicts)} images"
        )
    if mapper is None:
        resizing = build_augmentation(cfg, is_train=False)
        mapper = BNDatasetMapper(cfg, is_train=True, augmentations=resizing)
    return ProbeLoader(dicts, mapper, images_per_batch, seed)
