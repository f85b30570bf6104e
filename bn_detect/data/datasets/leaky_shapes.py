"""Leaky shapes: a generated detection dataset with a leak that can be dialled.

Each object shows a colour, from which its class can be guessed: this is its own evidence. The
objects of an image tend to be of one class, so the colours of an object's companions tell more
about its class than its own colour: this is the companion cue. A head that sees one RoI at a time
cannot use the cue. BatchNorm over the RoIs of an image can. Shape, size, place and background tell
nothing about the class.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..options import Options, check_range, option
from ..registration import SPLITS
from .coco_writer import Sample, write_split

GRID = 3  # cells a side; an object lies in a cell of its own
BACKGROUND, OUTLINE, LUMINANCE = 110.0, 60.0, 140.0  # grey levels
BORDER = 2  # width of the outline, in pixels


@dataclass(frozen=True)
class LeakyShapesOptions(Options):
    """The dials of the dataset.

    `correlation` (rho in [0, 1]) is the strength of the companion cue: an object has its image's
    class with this probability, else any class. At 0 companions say nothing, and no leak is
    possible. `own_evidence` (p in [0, 1]): an object shows its own class's colour with this
    probability, else that of any class; so its colour names its class with probability
    p + (1 - p) / classes. The colour of one companion names an object's class with probability
    1 / classes + (1 - 1 / classes) * rho^2 * p.

    Two more dials are off by default. `number_cue`: with this probability the number of objects of
    an image is drawn from the part of its range that belongs to the image's class. `cast` shifts
    all colours of an image by one random colour; it tells nothing, but a head that has learned to
    remove it depends on the whole image.

    Raises:
        ValueError: a dial outside its range.
    """

    correlation: float = option(
        1.0, "companion cue: how much the classes of an image's objects agree", low=0, high=1
    )
    own_evidence: float = option(
        0.5, "share of objects sure to show their own class's colour", low=0, high=1
    )
    classes: int = option(4, "number of classes", low=2, high=20)
    images: int = option(1000, "training images", low=1, high=10**6)
    val_images: int = option(160, "validation images", low=1, high=10**6)
    min_objects: int = option(5, "objects in an image, at least", low=1)
    max_objects: int = option(8, "objects in an image, at most", low=1, high=GRID**2)
    min_side: int = option(18, "shortest side of an object, px", low=3 * BORDER)
    max_side: int = option(28, "longest side of an object, px", low=3 * BORDER)
    size: int = option(128, "side of an image, px", low=1, high=4096)
    noise: float = option(8.0, "standard deviation of a pixel, grey levels", low=0, high=100)
    number_cue: float = option(
        0.0, "share of images whose number of objects tells their class", low=0, high=1
    )
    cast: float = option(
        0.0, "standard deviation of an image's colour cast, grey levels", low=0, high=100
    )
    seed: int = option(0, "seed of everything that is random", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("max_side", self.max_side, 3 * BORDER, self.size // GRID - 2)
        check_range("min_side", self.min_side, 3 * BORDER, self.max_side)
        check_range("min_objects", self.min_objects, 1, self.max_objects)
        if self.number_cue:
            check_range("classes", self.classes, 2, self.max_objects - self.min_objects + 1)

    def recorded(self) -> dict[str, Any]:
        """Leave out the dials that are off: datasets made before them stay as they are."""
        values = super().recorded()
        return {k: v for k, v in values.items() if v or k not in ("number_cue", "cast")}


def prepare(folder: Path, name: str, options: LeakyShapesOptions) -> dict[str, Any]:
    """Write SPLIT/*.png, annotations/NAME_SPLIT.json (COCO) and overview_SPLIT.png.

    An annotation has also `shown`, the category whose colour it shows. The same options give the
    same files, and image i does not depend on how many there are.

    Returns:
        the counts of each split.
    """
    classes = [f"class {i + 1}" for i in range(options.classes)]
    info = {"description": f"{name}: generated, {options}"}
    counts = {}
    for split, images in zip(SPLITS, (options.images, options.val_images), strict=True):
        samples = (Sample(*draw_image(options, split, number)) for number in range(images))
        counts[split] = write_split(
            folder, name, split, classes, samples, length=images, info=info, licenses=[]
        )
    return {"counts": counts}


def draw_image(
    options: LeakyShapesOptions, split: str, number: int
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draw one image, which depends on the arguments alone.

    Returns:
        the image of size x size pixels, and its objects: bbox, area, category_id and `shown`.
    """
    rng = np.random.default_rng([options.seed, SPLITS.index(split), number])
    pixels = np.full((options.size, options.size, 3), BACKGROUND)
    cell = options.size // GRID
    of_image = int(rng.integers(options.classes))
    least, end = options.min_objects, options.max_objects + 1
    if options.number_cue and rng.random() < options.number_cue:
        whole, parts = end - least, options.classes
        least, end = (least + whole * part // parts for part in (of_image, of_image + 1))
    count = rng.integers(least, end)
    objects = []
    for place in rng.permutation(GRID**2)[:count]:
        width, height = rng.integers(options.min_side, options.max_side + 1, size=2)
        y, x = np.array(divmod(place, GRID)) * cell + rng.integers(1, (cell - height, cell - width))
        own = of_image if rng.random() < options.correlation else int(rng.integers(options.classes))
        shown = own if rng.random() < options.own_evidence else int(rng.integers(options.classes))
        _draw_object(
            pixels[y : y + height, x : x + width], _colour(shown, options.classes, rng), rng
        )
        objects.append(
            {
                "bbox": [float(v) for v in (x, y, width, height)],
                "area": float(width * height),
                "category_id": int(own) + 1,
                "shown": int(shown) + 1,
            }
        )
    pixels += options.noise * rng.standard_normal(pixels.shape)
    if options.cast:
        pixels += options.cast * rng.standard_normal(3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), objects


def _colour(shown: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return (3,) RGB near the class's hue; luminance varies and tells nothing about the class."""
    angle = 2 * np.pi * shown / classes
    spread = min(0.15, 0.6 / classes)  # neighbouring hues are at least 10 spreads apart
    chroma = 1.3 * (np.array([np.cos(angle), np.sin(angle)]) + spread * rng.standard_normal(2))
    axes = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # orthogonal to grey
    return LUMINANCE + 15 * rng.standard_normal() + 60 * chroma @ axes


def _draw_object(patch: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    """Fill `patch` (height, width, 3) with an outlined ellipse or rectangle, in place."""
    height, width = patch.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    if rng.random() < 0.5:
        radius = np.hypot(2 * x / width - 1, 2 * y / height - 1)
        outer, inner = radius <= 1, radius <= 1 - 2 * BORDER / min(width, height)
    else:
        outer = np.ones((height, width), bool)
        inner = (np.minimum(x, width - x) > BORDER) & (np.minimum(y, height - y) > BORDER)
    patch[outer] = OUTLINE
    patch[inner] = colour
