"""Register a part of a registered dataset under the name NAME@N or NAME@-N."""

import torch
from detectron2.data import DatasetCatalog

from .metadata import share_metadata

# Without json_file, Detectron2's evaluator makes the ground truth from the images chosen.
OF_ALL_IMAGES = ("json_file", "image_root")


def register_subset(whole: str, number: str) -> None:
    """Register NAME@N: N images of dataset NAME, evenly spread over it. NAME@-N: all but N of them.

    To evaluate on a part of a training set: DATASETS.TEST "('coco_2017_train@5000',)". The N images
    that NAME@-N leaves out are the first ones of `random_order`.

    Raises:
        ValueError: N is not a positive number. An N that leaves no image, or above the number of
            NAME's images, is found when the dataset is read.
    """
    name = f"{whole}@{number}"
    if not number.removeprefix("-").isdigit() or int(number) == 0:
        raise ValueError(f"dataset {name!r}: after @ stands a number of images, at least 1")
    DatasetCatalog.register(name, lambda: _part(whole, name, int(number)))
    share_metadata(whole, name, without=OF_ALL_IMAGES)


def random_order(images: int, seed: int = 0) -> list[int]:
    """Return the places of so many images in one random order, the same on any machine."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tolist()


def _part(whole: str, name: str, number: int) -> list[dict]:
    dicts = DatasetCatalog.get(whole)
    share_metadata(whole, name, without=OF_ALL_IMAGES)
    if not -len(dicts) < number <= len(dicts):
        raise ValueError(f"dataset {name!r}: {whole} has {len(dicts)} images only")
    if number < 0:
        return [dicts[i] for i in sorted(random_order(len(dicts))[-number:])]
    return [dicts[i * len(dicts) // number] for i in range(number)]
