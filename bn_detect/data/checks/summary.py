"""Summaries of datasets, and a table with one row for each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DatasetSummary:
    """Counts and sizes of one dataset.

    Attributes:
        images, categories: numbers of them.
        annotations: number of annotations that count; `ignored` is that of the others (iscrowd).
        empty_images: number of images without an annotation that counts.
        most_per_image: number of annotations of the fullest image.
        size_quartiles: minimum, quartiles and maximum of the square root of box area, in pixels;
            empty if there is no box.
        warnings: faults that training survives, one sentence each.
    """

    name: str
    images: int
    annotations: int
    ignored: int
    categories: int
    empty_images: int
    most_per_image: int
    size_quartiles: tuple[float, ...]
    warnings: tuple[str, ...] = ()


def summarize(name: str, coco: dict[str, Any], warnings: Sequence[str] = ()) -> DatasetSummary:
    """Summarize the content of a valid COCO JSON."""
    annotations = coco.get("annotations", [])
    counted = [a for a in annotations if not a.get("iscrowd", 0)]
    per_image = Counter(a["image_id"] for a in counted)
    sizes = [max(a["bbox"][2] * a["bbox"][3], 0) ** 0.5 for a in counted if "bbox" in a]
    return DatasetSummary(
        name=name,
        images=len(coco["images"]),
        annotations=len(counted),
        ignored=len(annotations) - len(counted),
        categories=len(coco["categories"]),
        empty_images=len(coco["images"]) - len(per_image),
        most_per_image=max(per_image.values(), default=0),
        size_quartiles=tuple(np.percentile(sizes, (0, 25, 50, 75, 100)).tolist()) if sizes else (),
        warnings=tuple(warnings),
    )


def summary_table(summaries: Sequence[DatasetSummary]) -> str:
    """Return a plain-text table with one line for each dataset, and warnings below it."""
    counted = ("dataset", "images", "empty", "boxes", "ignored", "categories")
    measured = ("boxes per image: mean", "max", "sqrt(area) px: min", "25%", "50%", "75%", "max")
    rows: list[tuple[str, ...]] = [counted + measured]
    for s in summaries:
        counts = (s.images, s.empty_images, s.annotations, s.ignored, s.categories)
        per_image = (f"{s.annotations / max(s.images, 1):.1f}", str(s.most_per_image))
        sizes = tuple(f"{size:.0f}" for size in s.size_quartiles) or ("-",) * 5
        rows.append((s.name, *map(str, counts), *per_image, *sizes))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines += [f"warning: {s.name}: {warning}" for s in summaries for warning in s.warnings]
    return "\n".join(lines)
