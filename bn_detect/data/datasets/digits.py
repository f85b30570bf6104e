"""Scikit-learn's handwritten digits (Alpaydin & Kaynak 1998, UCI), as image files.

The 1,797 digits of 8x8 pixels are enlarged to 32x32, the smallest size that can be corrupted.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..options import Options
from ..registration import SPLITS

SIDE = 32
TRAIN_IMAGES = 797  # the first ones, written by other hands than most of the others


def prepare(folder: Path, name: str, options: Options) -> dict[str, Any]:
    """Write SPLIT/DIGIT/*.png: grey images, bilinear from 17 grey levels, white on black.

    The files are the same each time: 797 for training, 1,000 for validation.
    """
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    images, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        split = SPLITS[number >= TRAIN_IMAGES]
        small = Image.fromarray(np.round(pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))
        path = folder / split / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(path)
    return {"images": len(labels)}
