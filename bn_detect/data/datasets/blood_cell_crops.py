"""Single blood cells, for classifiers: a square of a photograph of Chula RBC-12 around each point.

Photographs whose classes differ in fine detail: what corruptions destroy, digits do not have.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..options import Options, option, source_option
from ..registration import SPLITS
from .blood_cells import CLASSES, validation_blocks
from .sources.chula_rbc12 import CELLS, SOURCE, opened, parse_points

CROP, SIDE = 80, 64  # px of a square in the photograph, which shows a whole cell, and of its image


@dataclass(frozen=True)
class BloodCellCropsOptions(Options):
    """Options of choosing and dividing the cells.

    Neighbouring numbers are assumed to be of one smear: the source names no patients.
    """

    most: int = option(700, "cells of a class, at most", low=10)
    block: int = option(20, "neighbouring numbers that stay on one side of the split", low=1)
    val_fraction: float = option(0.4, "share of the blocks for validation", low=0.01, high=0.9)
    source: str = source_option("the source's folder or zip file")


def prepare(folder: Path, name: str, options: BloodCellCropsOptions) -> dict[str, Any]:
    """Write SPLIT/CLASS/*.png and LICENSE; rare classes are left out (see `blood_cells`).

    Raises:
        DatasetError: the source cannot be had or is not the expected one, or no division has every
            class on both sides.
    """
    with opened(options.source) as (numbers, read):
        points = {n: parse_points(read(f"Label/{n}.txt"), f"Label/{n}.txt") for n in numbers}
        photographs = {n: read(f"Dataset/{n}.jpg") for n in numbers}
        (folder / "LICENSE").write_bytes(read("LICENSE"))
    cells: dict[str, list[tuple[int, int, Image.Image]]] = {cell: [] for cell in CLASSES}
    for number, rows in points.items():
        with Image.open(BytesIO(photographs[number])) as file:
            pixels = file.convert("RGB")
        for i, (x, y, cell) in enumerate(rows.round().astype(int)):
            box = (x - CROP // 2, y - CROP // 2, x + CROP // 2, y + CROP // 2)
            inside = min(box) >= 0 and box[2] <= pixels.width and box[3] <= pixels.height
            if inside and CELLS[cell] in cells:
                cells[CELLS[cell]].append((number, i, pixels.crop(box)))
    chosen = [
        (label, *each[i * len(each) // kept])
        for label, each in cells.items()
        for kept in [min(len(each), options.most)]
        for i in range(kept)
    ]
    blocks = np.array([number // options.block for _, number, _, _ in chosen])
    labels = [np.eye(len(CLASSES), dtype=int)[CLASSES.index(label)] for label, *_ in chosen]
    held_out = validation_blocks(blocks, labels, options.val_fraction)
    counts = dict.fromkeys(SPLITS, 0)
    for (label, number, i, crop), block in zip(chosen, blocks, strict=True):
        split = SPLITS[block in held_out]
        path = folder / split / label / f"{number}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(path)
        counts[split] += 1
    return {"source": SOURCE, "validation_blocks": sorted(held_out), "counts": counts}
