"""What the cells say: the table, the curve over images, and means over corruptions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tabulate import tabulate

from .cells import CHECKPOINT, CLEAN, Cell

Place = tuple[str, str, int]
Metrics = dict[str, dict[str, float]]
# Of each task's metrics the one that counts, in percent, and whether more of it is better.
SCORES = {"bbox": ("AP", True), "classification": ("top1_error", False)}


@dataclass(frozen=True)
class Summary:
    """Means over corruptions; errors in percent (of a detector 100 - AP).

    Attributes:
        source, target: mean error under the checkpoint's statistics, and under each corruption's
            own.
        ratio: mean over corruptions of own error / source error, in percent. Like the mCE of
            Hendrycks & Dietterich (2019), with the checkpoint's statistics as the baseline.
    """

    source: float
    target: float
    ratio: float


def score(metrics: Metrics) -> tuple[str, float, bool]:
    """Name, value and whether more is better, of the task that counts.

    Detectron2's COCO evaluator gives NaN, in the file null, without any detection: an AP of 0.

    Raises:
        ValueError: a task that is none of `SCORES`.
    """
    for task, (name, more_is_better) in SCORES.items():
        if task in metrics:
            value = metrics[task][name]
            nothing = value is None or math.isnan(value)
            return name, 0.0 if nothing else value, more_is_better
    raise ValueError(f"no metric to compare among {', '.join(metrics)}")


def error(metrics: Metrics) -> float:
    """In percent, less is better."""
    _, value, more_is_better = score(metrics)
    return 100 - value if more_is_better else value


def summarize(
    cells: Mapping[Place, Cell], corruptions: Sequence[str], images: int
) -> Summary | None:
    """Over the corruptions with statistics from so many images; None without any."""
    if not corruptions:
        return None
    source = [error(cells[c, CHECKPOINT, 0].metrics) for c in corruptions]
    target = [error(cells[c, c, images].metrics) for c in corruptions]
    ratio = fmean(100 * t / max(s, 1e-9) for s, t in zip(source, target, strict=True))
    return Summary(fmean(source), fmean(target), ratio)


def tables(
    cells: Mapping[Place, Cell], corruptions: Sequence[str], num_images: Sequence[int]
) -> str:
    """Markdown: all data x all statistics, each data under its own by images, and the means."""
    domains, most = [CLEAN, *corruptions], max(num_images)
    name = score(next(iter(cells.values())).metrics)[0]

    def value(data: str, statistics: str, images: int) -> float:
        return score(cells[data, statistics, images].metrics)[1]

    matrix = [
        [data, value(data, CHECKPOINT, 0), *(value(data, s, most) for s in domains)]
        for data in domains
    ]
    by_images = [
        [data, value(data, CHECKPOINT, 0), *(value(data, data, n) for n in sorted(num_images))]
        for data in domains
    ]
    text = [
        f"{name} on each data under the statistics of the checkpoint, and of {most} images of each",
        _markdown(["evaluated on", CHECKPOINT, *domains], matrix),
        f"{name} under the statistics of so many images of the same data",
        _markdown(["evaluated on", CHECKPOINT, *map(str, sorted(num_images))], by_images),
    ]
    means = summarize(cells, corruptions, most)
    if means is not None:
        text.append(
            f"Mean error over {len(corruptions)} corruptions: {means.source:.1f} under the "
            f"checkpoint's statistics, {means.target:.1f} under each one's own "
            f"(mean of the ratios: {means.ratio:.1f}%)"
        )
    return "\n\n".join(text)


def _markdown(headers: list[str], rows: list[list]) -> str:
    return tabulate(rows, headers, tablefmt="github", floatfmt=".1f")
