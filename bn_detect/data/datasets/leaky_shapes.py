"""Leaky shapes: a generated detection dataset with a leak that can be dialled.

Every object shows a colour, from which its class can be guessed: its own evidence. The objects of
an image tend to be of one class, so the colours of its companions tell more than its own: the
companion cue. A head that sees one RoI at a time cannot use it; BatchNorm over the RoIs of an
image can. Shape, size, place and background say nothing of the class.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..prepared import (RECORD, default_root, prepare_folder)
from ..registration import register_prepared
from ..checks.summary import summarize

NAME = "leaky_shapes"
SPLITS = ("train", "val")
RECIPE = 1  # raised when the same options give other files than before
GRID = 3  # cells a side; an object lies in a cell of its own
BACKGROUND, OUTLINE, LUMINANCE = 110.0, 60.0, 140.0  # grey levels
BORDER = 2  # width of the outline, in pixels


@dataclass(frozen=True)
class LeakyShapesOptions:
    """The dials.

    Attributes:
        correlation: rho in [0, 1], the strength of the companion cue: an object has its image's
            class with this probability, else any. 0: companions say nothing, no leak is possible.
            The colour of one companion names an object's class with
            1 / classes + (1 - 1 / classes) * rho^2 * p.
        own_evidence: p in [0, 1]: an object shows its own class's colour with this probability,
            else that of any class; so its colour names its class with p + (1 - p) / classes.
        classes: at least 2. images, val_images: of the two splits.
        min_objects, max_objects: per image, at most 9.
        min_side, max_side: of an object, in pixels.
        size: of an image, in pixels. noise: of a pixel, standard deviation in grey levels.
        seed: of everything.

    Raises:
        ValueError: a dial outside its range.
    """

    correlation: float = 1.0
    own_evidence: float = 0.5
    classes: int = 4
    images: int = 1000
    val_images: int = 160
    min_objects: int = 5
    max_objects: int = 8
    min_side: int = 18
    max_side: int = 28
    size: int = 128
    noise: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        cell = self.size // GRID
        for name, low, high in (
            ("correlation", 0, 1),
            ("own_evidence", 0, 1),
            ("classes", 2, 20),
            ("images", 1, 10**6),
            ("val_images", 1, 10**6),
            ("min_objects", 1, self.max_objects),
            ("max_objects", 1, GRID**2),
            ("min_side", 3 * BORDER, self.max_side),
            ("max_side", 3 * BORDER, cell - 2),
            ("noise", 0, 100),
            ("seed", 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


def register_leaky_shapes(root: str | Path | None = None, *, replace: bool = True) -> None:
    """Register leaky_shapes_train and _val, and those of every other leaky_shapes_* prepared.

    Arguments as in `register_prepared`.
    """
    folder = Path(root) if root is not None else default_root()
    others = [record.parent.name for record in folder.glob(f"{NAME}_*/{RECORD}")]
    for name in (NAME, *sorted(others)):
        register_prepared(name, SPLITS, root, replace=replace)


def prepare_leaky_shapes(
    root: str | Path | None = None,
    options: LeakyShapesOptions | None = None,
    *,
    name: str = NAME,
    force: bool = False,
) -> bool:
    """Make the dataset `root`/`name`, unless it is there already, and register it.

    Layout: `{train,val}/*.png`, `annotations/NAME_{train,val}.json` (COCO; an annotation has also
    `shown`, the category whose colour it shows), `overview_{train,val}.png`, `prepared.json`.
    The same options give the same files, and image i does not depend on how many there are.

    Args:
        root: default: $DETECTRON2_DATASETS, or ./datasets.
        name: begins with "leaky_shapes"; registered as NAME_train and NAME_val.
        force: rebuild what was prepared before, whatever its options.

    Returns:
        whether it was made now; False: it was there, with the same options.

    Raises:
        DatasetError: it is there with other options, or the place is taken by something else.
        ValueError: another name.
    """
    if not name.startswith(NAME) or not name.replace("_", "").isalnum():
        raise ValueError(
            f"name is {name!r}; it must begin with {NAME!r} and hold letters, digits and _ only"
        )
    root = Path(root) if root is not None else default_root()
    options = options or LeakyShapesOptions()
    made = prepare_folder(
        root / name, RECIPE, asdict(options), lambda f: _build(f, name, options), force=force
    )
    register_prepared(name, SPLITS, root)
    return made


def _build(folder: Path, name: str, options: LeakyShapesOptions) -> dict[str, Any]:
    (folder / "annotations").mkdir()
    counts = {}
    for split, images in zip(SPLITS, (options.images, options.val_images), strict=True):
        (folder / split).mkdir()
        coco = _empty_coco(name, options)
        for number in tqdm(range(images), f"{name} {split}", unit="image"):
            pixels, objects = draw_image(options, split, number)
            file_name = f"{number:06d}.png"
            Image.fromarray(pixels).save(folder / split / file_name)
            entry = {"id": number + 1, "file_name": file_name}
            coco["images"].append(entry | {"width": options.size, "height": options.size})
            for shown in objects:
                ids = {"id": len(coco["annotations"]) + 1, "image_id": number + 1, "iscrowd": 0}
                coco["annotations"].append(ids | shown)
        (folder / f"annotations/{name}_{split}.json").write_text(json.dumps(coco))
        _overview(folder / split, coco).save(folder / f"overview_{split}.png")
        counts[split] = asdict(summarize(f"{name}_{split}", coco))
    return {"counts": counts}


def _empty_coco(name: str, options: LeakyShapesOptions) -> dict[str, Any]:
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(options.classes)]
    return {
        "info": {"description": f"{name}: generated, {options}"},
        "licenses": [],
        "categories": categories,
        "images": [],
        "annotations": [],
    }


def draw_image(
    options: LeakyShapesOptions, split: str, number: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One image, a function of its arguments.

    Returns:
        (size, size, 3) uint8, and its objects: COCO's bbox, area and category_id, and `shown`.
    """
    rng = np.random.default_rng([options.seed, SPLITS.index(split), number])
    pixels = np.full((options.size, options.size, 3), BACKGROUND)
    cell = options.size // GRID
    of_image = rng.integers(options.classes)
    count = rng.integers(options.min_objects, options.max_objects + 1)
    objects = []
    for place in rng.permutation(GRID**2)[:count]:
        width, height = rng.integers(options.min_side, options.max_side + 1, size=2)
        y, x = np.array(divmod(place, GRID)) * cell + rng.integers(1, (cell - height, cell - width))
        own = of_image if rng.random() < options.correlation else rng.integers(options.classes)
        shown = own if rng.random() < options.own_evidence else rng.integers(options.classes)
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
    return pixels.clip(0, 255).astype(np.uint8), objects


def _colour(shown: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """(3,) around the class's hue on a circle of chroma; luminance varies, and says nothing."""
    angle = 2 * np.pi * shown / classes
    spread = min(0.15, 0.6 / classes)  # neighbouring hues are 10 of them apart, or more
    chroma = 1.3 * (np.array([np.cos(angle), np.sin(angle)]) + spread * rng.standard_normal(2))
    axes = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # orthogonal to grey
    return LUMINANCE + 15 * rng.standard_normal() + 60 * chroma @ axes


def _draw_object(patch: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    """An outlined ellipse or rectangle that fills `patch` (height, width, 3), in place."""
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


def _overview(folder: Path, coco: dict[str, Any], columns: int = 4, zoom: int = 2) -> Image.Image:
    """The first 8 images with their boxes and classes."""
    tiles = [_annotated(folder, entry, coco, zoom) for entry in coco["images"][: 2 * columns]]
    side = tiles[0].width
    sheet = Image.new("RGB", (side * min(columns, len(tiles)), side * -(-len(tiles) // columns)))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * side, number // columns * side))
    return sheet


def _annotated(folder: Path, entry: dict, coco: dict[str, Any], zoom: int) -> Image.Image:
    with Image.open(folder / entry["file_name"]) as file:
        image = file.resize((zoom * file.width, zoom * file.height))
    draw = ImageDraw.Draw(image)
    for annotation in _of_image(coco, entry["id"]):
        x, y, width, height = (zoom * v for v in annotation["bbox"])
        draw.rectangle([x, y, x + width, y + height], outline=(255, 255, 255))
        draw.text((x + 2, y - 11), str(annotation["category_id"]), fill=(255, 255, 255))
    return image


def _of_image(coco: dict[str, Any], image_id: int) -> Iterator[dict]:
    return (a for a in coco["annotations"] if a["image_id"] == image_id)
