"""Scikit-learn's handwritten digits (Alpaydin & Kaynak 1998, UCI), as image files.

1,797 real digits of 8x8 pixels, enlarged to 32x32, the least that corruptions take.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .image_folders import register_image_folders
from ..prepared import (default_root, prepare_folder)

NAME = "digits"
SPLITS = ("train", "val")
SIDE = 32
TRAIN_IMAGES = 797  # the first ones, written by other hands than most of the others
RECIPE = 1


def register_digits(root: str | Path | None = None, *, replace: bool = True) -> None:
    """Register digits_train (797 images) and digits_val (1,000).

    Args:
        root: the folder that holds digits/; default: $DETECTRON2_DATASETS, or ./datasets.
        replace: see `register_image_folders`.
    """
    folder = (Path(root) if root is not None else default_root()) / NAME
    for split in SPLITS:
        register_image_folders(f"{NAME}_{split}", folder / split, replace=replace)


def prepare_digits(root: str | Path | None = None, *, force: bool = False) -> bool:
    """Write `root`/digits/{train,val}/DIGIT/*.png, unless they are there, and register them.

    Grey images, bilinear from 17 grey levels; white on black. The same files each time.

    Args:
        root: default: $DETECTRON2_DATASETS, or ./datasets.
        force: write them anew.

    Returns:
        whether they were made now.

    Raises:
        DatasetError: the place is taken by something else.
    """
    target = (Path(root) if root is not None else default_root()) / NAME
    made = prepare_folder(
        target, RECIPE, {"side": SIDE, "train": TRAIN_IMAGES}, _build, force=force
    )
    register_digits(root)
    return made


def _build(folder: Path) -> dict[str, Any]:
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    images, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        split = SPLITS[number >= TRAIN_IMAGES]
        small = Image.fromarray(np.round(pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))
        path = folder / split / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(path)
    return {"images": len(labels)}
