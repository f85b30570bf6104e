"""Image classification data: a folder for each class, as ImageNet has it."""

import os
import random
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import DatasetError
from ..prepared import default_root
from ..registration import make_way

CLASSIFICATION = "classification"  # the evaluator_type of these datasets
IMAGENET = ("train", "val")
SUFFIXES = (".jpeg", ".jpg", ".png")


def register_image_folders(name: str, folder: str | Path, *, replace: bool = True) -> None:
    """Register the images `folder`/CLASS/FILE; nothing is read before they are used.

    A dataset dict has "file_name", "image_id" and "label", the place of CLASS among the names in
    their order, which becomes the metadata's `classes`. The images stand in one fixed random order,
    so that neighbours are not of one class: consecutive test images may form a normalization batch.

    Registering the same place again does nothing; another place replaces the one before, but with
    `replace` False whatever has the name stays.
    """
    folder = str(folder)
    if make_way(name, "image_root", folder, replace=replace):
        DatasetCatalog.register(name, lambda: load_image_folders(name, folder))
        MetadataCatalog.get(name).set(evaluator_type=CLASSIFICATION, image_root=folder)


def register_imagenet(root: str | Path | None = None, *, replace: bool = True) -> None:
    """Register imagenet_train and imagenet_val: `root`/imagenet/{train,val}/CLASS/*.JPEG.

    Args:
        root: default: $DETECTRON2_DATASETS, or ./datasets.
        replace: see `register_image_folders`.
    """
    folder = (Path(root) if root is not None else default_root()) / "imagenet"
    for split in IMAGENET:
        register_image_folders(f"imagenet_{split}", folder / split, replace=replace)


def load_image_folders(name: str, folder: str) -> list[dict[str, Any]]:
    """The dataset dicts; see `register_image_folders`.

    Raises:
        DatasetError: no such folder, or a class in it without an image.
    """
    if not os.path.isdir(folder):
        raise DatasetError(
            f"dataset {name!r}: folder {folder} is missing; it holds a folder of images for each "
            "class" + (_DIGITS if name.startswith("digits_") else _PLACE)
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    dicts = []
    for label, of_class in enumerate(classes):
        files = sorted(os.listdir(os.path.join(folder, of_class)))
        images = [file for file in files if file.lower().endswith(SUFFIXES)]
        if not images:
            raise DatasetError(
                f"dataset {name!r}: {os.path.join(folder, of_class)} has no image "
                f"({', '.join(SUFFIXES)})"
            )
        dicts += [
            {
                "file_name": os.path.join(folder, of_class, file),
                "image_id": f"{of_class}/{file}",
                "label": label,
            }
            for file in images
        ]
    if not dicts:
        raise DatasetError(f"dataset {name!r}: {folder} has no folder of images")
    random.Random(0).shuffle(dicts)
    MetadataCatalog.get(name).classes = classes
    return dicts


_DIGITS = ": make it with `python tools/prepare_data.py digits`"
_PLACE = "; set DETECTRON2_DATASETS to the folder above it"
