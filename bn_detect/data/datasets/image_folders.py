"""Image classification data: one folder of images for each class, as ImageNet has it."""

import os
import random
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import DatasetError
from ..metadata import CLASSIFICATION
from ..registration import SPLITS, make_way

SUFFIXES = (".jpeg", ".jpg", ".png")


def register_splits(name: str, folder: Path, *, replace: bool = True) -> list[str]:
    """Register NAME_train and NAME_val: `folder`/SPLIT/CLASS/FILE.

    Returns:
        the names that were registered now.
    """
    names = {f"{name}_{split}": folder / split for split in SPLITS}
    return [n for n, place in names.items() if register_image_folders(n, place, replace=replace)]


def register_image_folders(name: str, folder: str | Path, *, replace: bool = True) -> bool:
    """Register the images `folder`/CLASS/FILE; nothing is read before they are used.

    A dataset dict has "file_name", "image_id" and "label". The label is the index of CLASS among
    the sorted names of the classes, which become the metadata's `classes`. The images are in one
    fixed random order, so that neighbours are of different classes: consecutive test images may
    form a normalization batch.

    Registering the same place again does nothing; another place replaces the one before.

    Args:
        replace: False leaves what has the name already, whoever registered it.

    Returns:
        whether it was registered now.
    """
    folder = str(folder)
    if not make_way(name, "image_root", folder, replace=replace):
        return False
    DatasetCatalog.register(name, lambda: load_image_folders(name, folder))
    MetadataCatalog.get(name).set(evaluator_type=CLASSIFICATION, image_root=folder)
    return True


def load_image_folders(name: str, folder: str) -> list[dict[str, Any]]:
    """Return the dataset dicts; see `register_image_folders`.

    Raises:
        DatasetError: there is no such folder, or a class in it has no image.
    """
    if not os.path.isdir(folder):
        remedy = MetadataCatalog.get(name).get("remedy", "this is where it was registered")
        raise DatasetError(
            f"dataset {name!r}: folder {folder} is missing; it holds a folder of images for each "
            f"class; {remedy}"
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    dicts = []
    for label, class_name in enumerate(classes):
        files = sorted(os.listdir(os.path.join(folder, class_name)))
        images = [file for file in files if file.lower().endswith(SUFFIXES)]
        if not images:
            raise DatasetError(
                f"dataset {name!r}: {os.path.join(folder, class_name)} has no image "
                f"({', '.join(SUFFIXES)})"
            )
        dicts += [
            {
                "file_name": os.path.join(folder, class_name, file),
                "image_id": f"{class_name}/{file}",
                "label": label,
            }
            for file in images
        ]
    if not dicts:
        raise DatasetError(f"dataset {name!r}: {folder} has no folder of images")
    random.Random(0).shuffle(dicts)
    MetadataCatalog.get(name).classes = classes
    return dicts
