"""Batches of datasets that are registered with Detectron2."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation
from torch.utils.data import DataLoader

from ...data import BNDatasetMapper
from ...data.proposals import dataset_dicts, proposal_files

Mapper = Callable[[dict[str, Any]], Any]


def probe_loader(
    cfg: CfgNode,
    dataset_name: str,
    images_per_batch: int,
    *,
    mapper: Mapper | None = None,
    seed: int = 0,
) -> DataLoader[Any]:
    """Return batches of a registered dataset with ground truth, its images resized as for testing.

    Every pass gives the same lists of dicts with "instances": only the order of the images is
    random, and `seed` fixes it. Images that do not fill a batch are left out.

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
    mapped = mapper or BNDatasetMapper(
        cfg, is_train=True, augmentations=build_augmentation(cfg, is_train=False)
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dicts), generator=generator).tolist()
    return DataLoader(
        [dicts[index] for index in order],  # type: ignore[arg-type]  # any sequence will do
        images_per_batch,
        drop_last=True,
        collate_fn=lambda chosen: [mapped(each) for each in chosen],
        generator=generator,  # else each pass would draw a number from the global one
    )
