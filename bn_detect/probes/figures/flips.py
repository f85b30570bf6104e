"""A picture of RoIs whose prediction flips when their companions are swapped."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...reporting.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPANIONS = 12  # crops shown of each kind
SIDE = 48  # pixels of a crop

Place = tuple[str, Sequence[float]]  # an image file, and x0, y0, x1, y1 in its pixels


def draw_flips(
    results: Mapping[str, Sequence[Mapping[str, Any]]], examples: int = 4
) -> "Figure | None":
    """Draw the RoI, companions of its own batch, and foreign ones, of the arms that flip most.

    None where no flip was recorded, or the images are not there any more.

    Args:
        results: arm -> reports of its seeds, with the names of the "classes".
    """
    flips = [
        (arm, names, flip)
        for arm, names, flip in _flips(results)
        if flip["file_name"] and _readable(flip["file_name"])
    ][:examples]
    if not flips:
        return None
    figure = new_figure(10, 1.7 * len(flips))
    rows = figure.subplots(len(flips), 3, squeeze=False, width_ratios=[1, 3, 3])
    for axes, (arm, names, flip) in zip(rows, flips, strict=True):
        own, swapped = (_name(flip[key], names) for key in ("own_prediction", "swapped_prediction"))
        truth = _name(flip["label"], names)
        _show(axes[0], _crop(flip["file_name"], flip["box"]), f"truth: {truth}")
        _show(axes[1], _montage(flip["own_companions"]), f"own companions: says {own}")
        _show(axes[2], _montage(flip["foreign_companions"]), f"foreign companions: says {swapped}")
        axes[0].set_ylabel(arm, fontsize=7)
    figure.tight_layout()
    return figure


def _flips(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[tuple[str, list[str], dict[str, Any]]]:
    """(arm, names of the classes, example), the arm with the largest change first."""
    examples = [
        (report["classification"]["change"]["mean"], arm, report.get("classes") or [], flip)
        for arm, reports in results.items()
        for report in reports
        for flip in report.get("flips", ())
    ]
    examples.sort(key=lambda example: -(example[0] or 0.0))
    return [(arm, classes, flip) for _, arm, classes, flip in examples]


def _readable(file_name: str) -> bool:
    try:
        with Image.open(file_name):
            return True
    except OSError:
        return False


def _name(label: int, names: Sequence[str]) -> str:
    if 0 <= label < len(names):
        return names[label]
    return "background" if names else f"class {label}"


def _montage(places: Sequence[Place]) -> np.ndarray:
    crops = [_crop(name, box) for name, box in places[:COMPANIONS] if name and _readable(name)]
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    crops += [blank] * (COMPANIONS - len(crops))
    half = COMPANIONS // 2
    return np.concatenate([np.concatenate(row, axis=1) for row in (crops[:half], crops[half:])])


def _crop(file_name: str, box: Sequence[float]) -> np.ndarray:
    with Image.open(file_name) as image:
        region = image.convert("RGB").crop([round(v) for v in box])
    return np.asarray(region.resize((SIDE, SIDE)))


def _show(axis: "Axes", picture: np.ndarray, title: str) -> None:
    axis.imshow(picture)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=8)
