"""The cells of a domain-shift table: evaluation data x data of the population statistics."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.files import write_json

CLEAN, CHECKPOINT = "clean", "checkpoint"


@dataclass(frozen=True)
class Cell:
    """One evaluation.

    Attributes:
        data: "clean" or the corruption of the evaluated images.
        statistics: "checkpoint", those that it holds; "clean" or a corruption: recomputed from so
            many such `images` (0 for "checkpoint").
        metrics: by task, such as {"bbox": {"AP": ...}}; None: not measured yet.
    """

    data: str
    statistics: str
    images: int
    metrics: dict[str, dict[str, float]] | None = None

    @property
    def place(self) -> tuple[str, str, int]:
        return self.data, self.statistics, self.images


def plan(corruptions: Sequence[str], num_images: Sequence[int]) -> list[Cell]:
    """The cells to measure, those of the same statistics together.

    Every data under every statistics from the largest number of images, and under the checkpoint's;
    from fewer images, each data under its own.
    """
    domains = [CLEAN, *corruptions]
    most = max(num_images)
    cells = [Cell(data, CHECKPOINT, 0) for data in domains]
    for statistics in domains:
        cells += [Cell(data, statistics, most) for data in domains]
        cells += [Cell(statistics, statistics, n) for n in sorted(set(num_images)) if n != most]
    return cells


class Results:
    """The measured cells in a JSON file, which is whole at any moment.

    Args:
        path: of the file; what an earlier run measured with the same `settings` is kept.
        settings: whatever the numbers depend on, JSON.

    Raises:
        ValueError: the file holds the results of other settings, or something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self.settings = path, settings
        self.cells: dict[tuple[str, str, int], Cell] = {}
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text())
            cells = [Cell(**cell) for cell in found["cells"]]
            before = found["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no results of this tool: {error}") from error
        different = sorted(k for k in settings if before.get(k) != settings[k])
        if different:
            raise ValueError(
                f"{path} was measured with another {', '.join(different)}; name another --output"
            )
        self.cells = {cell.place: cell for cell in cells}

    def add(self, cell: Cell) -> None:
        """Keep a measured cell, on disk."""
        self.cells[cell.place] = cell
        cells = [asdict(cell) for cell in self.cells.values()]
        write_json(self._path, {"settings": self.settings, "cells": cells})


def fingerprint(*parts: bytes) -> str:
    """Of whatever makes two runs the same."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
