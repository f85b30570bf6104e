"""Blood cells: photographs of blood smears whose cells are of a kind by nature.

The cells of a patient are alike: target cells, or ovalocytes, or normal cells. So the companions of
a cell tell much about its class. The source, Chula RBC-12, gives a point and a class for some or
all cells of a photograph. Here the points become boxes, and the photographs are cut into tiles, of
which those are kept whose cells are nearly all labelled.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import DatasetError
from ..options import Options, option, source_option
from ..registration import SPLITS
from .coco_writer import Sample, write_split
from .sources.blood_cell_boxes import find_cells
from .sources.chula_rbc12 import CELLS, SOURCE, Read, opened, parse_points
from .tiling import areas, clip_boxes, tile_windows

RARE = ("macrocyte", "microcyte", "teardrop", "uncategorised")  # kept with iscrowd=1
CLASSES = tuple(cell for cell in CELLS if cell not in RARE)
MARGIN = 12  # px at a tile's edge where cells do not count for the coverage
VISIBLE = 0.4  # a cell counts in a tile that shows more than this share of it
STAIN = ((180.0, 160.0, 175.0), 30.0)  # mean and spread of the channels under `same_stain`
DRAWS = 2000  # random choices of validation blocks, of which the best is taken


@dataclass(frozen=True)
class BloodCellsOptions(Options):
    """Options of cutting and dividing the photographs (640x480 px).

    That neighbouring numbers are often of one smear is an assumption: the source names no patients.

    Raises:
        ValueError: a value outside its range.
    """

    tiles: int = option(2, "tiles of a photograph along each side", low=1, high=4)
    scale: float = option(0.5, "size of a tile against its source", low=0.1, high=1)
    coverage: float = option(
        0.8, "least share of a tile's cell area that is labelled", low=0, high=1
    )
    min_cells: int = option(6, "cells of a tile, at least", low=1, high=1000)
    same_stain: bool = option(False, "give all photographs the same mean and spread of each colour")
    block: int = option(20, "neighbouring numbers that stay on one side of the split", low=1)
    val_fraction: float = option(0.25, "share of the blocks for validation", low=0.01, high=0.9)
    source: str = source_option("the source's folder or zip file")


def prepare(folder: Path, name: str, options: BloodCellsOptions) -> dict[str, Any]:
    """Write SPLIT/*.png, annotations/NAME_SPLIT.json, overview_SPLIT.png, LICENSE and SOURCE.md.

    An image has also `photograph`, the number of its source, and `coverage`.

    Returns:
        the source and the counts of each split.

    Raises:
        DatasetError: the source cannot be had or is not the expected one, or no division has every
            class on both sides.
    """
    tiles: list[Sample] = []
    with opened(options.source) as (numbers, read):
        for number in tqdm(numbers, f"{name} photographs", unit="image"):
            tiles += cut(number, read, options)
        (folder / "LICENSE").write_bytes(read("LICENSE"))
    text = "Made from {archive} ({licence} licence, see LICENSE).\n\n{citation}\n"
    (folder / "SOURCE.md").write_text(text.format(**SOURCE))
    blocks = np.array([tile.fields["photograph"] // options.block for tile in tiles])
    held_out = validation_blocks(blocks, [_counts(tile) for tile in tiles], options.val_fraction)
    description = f"{name}: tiles of Chula RBC-12, {options.recorded()}"
    info = {"description": description, "url": SOURCE["archive"]}
    licences = [{"id": 1, "name": SOURCE["licence"]}]
    counts = {}
    for split in SPLITS:
        chosen = [
            tile
            for tile, block in zip(tiles, blocks, strict=True)
            if (block in held_out) == (split == "val")
        ]
        counts[split] = write_split(
            folder, name, split, CLASSES, chosen, info=info, licenses=licences
        )
    return {"source": SOURCE, "validation_blocks": sorted(held_out), "counts": counts}


def cut(number: int, read: Read, options: BloodCellsOptions) -> list[Sample]:
    """Return the tiles of one photograph that are kept."""
    label = f"Label/{number}.txt"
    points = parse_points(read(label), label)
    with Image.open(BytesIO(read(f"Dataset/{number}.jpg"))) as file:
        pixels = np.asarray(file.convert("RGB"))
    if not len(points):
        return []
    cells = find_cells(pixels, points[:, :2])
    shown = Image.fromarray(_same_stain(pixels) if options.same_stain else pixels)
    side = max(-(-s // options.tiles) for s in shown.size)
    samples = []
    for window in tile_windows(*shown.size, side, 0):
        coverage = cells.coverage(window, MARGIN)
        boxes, visible = clip_boxes(cells.boxes, window)
        seen = np.flatnonzero((visible > VISIBLE) & (areas(boxes) > 100))
        if coverage < options.coverage or len(seen) < options.min_cells:
            continue
        width, height = window.x1 - window.x0, window.y1 - window.y0
        size = round(options.scale * width), round(options.scale * height)
        tile = shown.crop(window).resize(size, Image.Resampling.BOX)
        fields = {"photograph": number, "coverage": round(coverage, 3), "license": 1}
        objects = [_object(boxes[i] * options.scale, CELLS[int(points[i, 2])], size) for i in seen]
        samples.append(Sample(tile, objects, fields))
    return samples


def _object(box: np.ndarray, cell: str, size: tuple[int, ...]) -> dict[str, Any]:
    x0, y0, x1, y1 = np.minimum(box, [*size, *size]).round(2).tolist()
    rare = cell in RARE
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "category_id": 1 if rare else CLASSES.index(cell) + 1,
        "iscrowd": int(rare),
        "cell": cell,
    }


def _counts(tile: Sample) -> np.ndarray:
    """Return (classes,) numbers of cells that count."""
    ids = [each["category_id"] - 1 for each in tile.objects if not each["iscrowd"]]
    return np.bincount(ids, minlength=len(CLASSES))


def _same_stain(pixels: np.ndarray) -> np.ndarray:
    values = pixels.astype(np.float64)
    mean, spread = values.mean((0, 1)), values.std((0, 1))
    equal = (values - mean) / np.maximum(spread, 1e-6) * STAIN[1] + STAIN[0]
    return equal.clip(0, 255).astype(np.uint8)


def validation_blocks(blocks: np.ndarray, counts: list[np.ndarray], fraction: float) -> set[int]:
    """Choose blocks for validation such that each class is on both sides, as evenly as possible.

    The choice is the best of many random ones, the same for the same arguments: the class that is
    divided worst must be divided as well as it can be.

    Args:
        blocks: (tiles,) block of each tile.
        counts: (classes,) cells of each tile.

    Raises:
        DatasetError: in no choice every class is on both sides.
    """
    names = np.unique(blocks)
    sums = np.array([sum(c for c, b in zip(counts, blocks, strict=True) if b == n) for n in names])
    totals = sums.sum(0)
    present = totals > 0
    number = min(max(1, round(fraction * len(names))), len(names) - 1)
    rng = np.random.default_rng(0)
    best, chosen = 0.0, np.array([], dtype=int)
    for _ in range(DRAWS if number > 0 else 0):
        draw = rng.choice(len(names), number, replace=False)
        share = sums[draw].sum(0)[present] / totals[present]
        score = float(np.minimum(share / fraction, (1 - share) / (1 - fraction)).min())
        if score > best:
            best, chosen = score, draw
    if not len(chosen):
        raise DatasetError(
            f"blood_cells: with {len(names)} blocks no choice has every class in training and "
            "validation: use a smaller --block or another --val-fraction"
        )
    return set(names[chosen].tolist())
