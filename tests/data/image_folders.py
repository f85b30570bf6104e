"""A tiny class-per-folder dataset."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_image_folders(root: Path, *, classes: int = 3, images: int = 6, size=(48, 40)) -> Path:
    """Write root/{train,val}/class_I/N.png, noise of a brightness by class; returns `root`."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 80, (size[1], size[0], 3)) + 80 * label
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root
