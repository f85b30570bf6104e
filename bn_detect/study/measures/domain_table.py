"""The cells of a domain-shift table, what they say in tables, and how they are drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ...reporting.columns import Result
from ...reporting.drawing import Results, bars, new_figure, style
from ...reporting.estimates import Estimate, mean_of
from .measure import Options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN, CHECKPOINT = "clean", "checkpoint"
ALL = "all"  # images
# The metric that counts of each task, in percent, and whether more of it is better.
SCORES = {"bbox": ("AP", True), "classification": ("top1_error", False)}
Metrics = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Cell:
    """One evaluation.

    Attributes:
        data: the domain of the evaluated images.
        statistics: the domain that the population statistics come from; "checkpoint": none, those
            that the checkpoint holds.
        images: how many images of it; "all", or "0" for the checkpoint.
    """

    data: str
    statistics: str
    images: str

    @property
    def key(self) -> str:
        """Return the cell's name in measurements.json."""
        if self.statistics == CHECKPOINT:
            return f"{self.data} under {CHECKPOINT}"
        return f"{self.data} under {self.images} images of {self.statistics}"


def domains(options: Options, severity: int) -> list[str]:
    """The domains of one severity; clean images are the first."""
    return [CLEAN, *(f"{c}_{severity}" for c in dict.fromkeys(options["corruptions"]))]


def plan(options: Options) -> list[Cell]:
    """List the cells to measure, those of the same statistics together.

    All data under all statistics of its severity from the most images, and under the checkpoint's;
    from fewer images, each data under its own.
    """
    *fewer, most = numbers(options)
    cells: list[Cell] = []
    for severity in options["severities"]:
        of_severity = domains(options, severity)
        cells += [Cell(data, CHECKPOINT, "0") for data in of_severity]
        for statistics in of_severity:
            cells += [Cell(data, statistics, most) for data in of_severity]
            cells += [Cell(statistics, statistics, number) for number in fewer]
    cells = list(dict.fromkeys(cells))  # clean images are in each severity
    passes = list(dict.fromkeys((cell.statistics, cell.images) for cell in cells))
    return sorted(cells, key=lambda cell: passes.index((cell.statistics, cell.images)))


def numbers(options: Options) -> list[str]:
    """The numbers of images for the statistics, ascending; "all" is the last."""
    whole = sorted({int(n) for n in options["num_images"] if n != ALL})
    return [*map(str, whole), *([ALL] if ALL in options["num_images"] else [])]


def score(metrics: Metrics) -> tuple[str, float, bool]:
    """Return name, value and whether more is better, of the metric that counts.

    Detectron2's COCO evaluator gives NaN, in the file null, without any detection: an AP of 0.

    Raises:
        ValueError: a task that is none of `SCORES`.
    """
    for task, (name, more_is_better) in SCORES.items():
        if task in metrics:
            value = metrics[task][name]
            return name, 0.0 if value is None or math.isnan(value) else value, more_is_better
    raise ValueError(f"no metric to compare among {', '.join(metrics)}")


class Table:
    """The cells of one arm, over its seeds."""

    def __init__(self, runs: Sequence[Result]) -> None:
        self._runs = runs
        self.options: Options = runs[0]["options"]
        self.numbers = numbers(self.options)
        first = next(value for key, value in runs[0].items() if " under " in key)
        self.metric, _, self.more_is_better = score(first)

    def estimate(self, data: str, statistics: str, images: str | None = None) -> Estimate:
        """Estimate a cell over the runs; None for `images`: from the most."""
        number = "0" if statistics == CHECKPOINT else images or self.numbers[-1]
        key = Cell(data, statistics, number).key
        return mean_of([score(run[key])[1] for run in self._runs])

    def means(self, severity: int) -> str:
        """Say what the corruptions cost on average; "" without any.

        The ratio is like the mCE of Hendrycks & Dietterich (2019), with the checkpoint's statistics
        as the baseline; the error of a detector is 100 - AP.
        """
        corrupted = domains(self.options, severity)[1:]
        if not corrupted:
            return ""

        def errors(statistics: str | None) -> list[float]:
            values = [self.estimate(c, statistics or c).mean for c in corrupted]
            return [100 - v for v in values] if self.more_is_better else values

        source, target = errors(CHECKPOINT), errors(None)
        ratio = fmean(100 * t / max(s, 1e-9) for s, t in zip(source, target, strict=True))
        return (
            f"Mean error over {len(corrupted)} corruptions: {fmean(source):.1f} under the "
            f"checkpoint's statistics, {fmean(target):.1f} under each one's own (mean of the "
            f"ratios: {ratio:.1f}%)"
        )

    def markdown(self, severity: int) -> list[str]:
        """All data x all statistics, each data under its own by images, and the means."""
        of_severity = domains(self.options, severity)
        *fewer, most = self.numbers

        def rows(columns: list[tuple[str | None, str | None]]) -> list[list[str]]:
            return [
                [d, *(self.estimate(d, s or d, n).cell() for s, n in columns)] for d in of_severity
            ]

        start = (CHECKPOINT, None)
        matrix = rows([start, *((s, most) for s in of_severity)])
        headers = ["evaluated on", CHECKPOINT]
        text = [
            f"{self.metric} on each data under the statistics of the checkpoint, and of {most} "
            "images of each",
            tabulate(matrix, [*headers, *of_severity], tablefmt="github", disable_numparse=True),
        ]
        if fewer:
            by_images = rows([start, *((None, n) for n in self.numbers)])
            text += [
                f"{self.metric} under the statistics of so many images of the same data",
                tabulate(
                    by_images, [*headers, *self.numbers], tablefmt="github", disable_numparse=True
                ),
            ]
        return [*text, *([means] if (means := self.means(severity)) else [])]


def tables(results: Results) -> str:
    """Markdown of all arms."""
    text = []
    for arm, runs in results.items():
        table = Table(runs)
        for severity in table.options["severities"]:
            text += [f"### {arm}, severity {severity}", *table.markdown(severity)]
    return "\n\n".join(text)


def draw(results: Results) -> "Figure":
    """All data x all statistics, and each data under its own over images, of the first arm."""
    table = Table(next(iter(results.values())))
    severities = table.options["severities"]
    height = 1.8 + 0.45 * len(domains(table.options, severities[0]))
    figure = new_figure(10, height * len(severities))
    axes = figure.subplots(len(severities), 2, squeeze=False, width_ratios=[1.2, 1])
    for (left, right), severity in zip(axes, severities, strict=True):
        _matrix(left, table, severity)
        _by_images(right, table, severity)
    figure.tight_layout()
    return figure


def _matrix(axis: Any, table: Table, severity: int) -> None:
    rows = domains(table.options, severity)
    columns = [CHECKPOINT, *rows]
    values = [[table.estimate(data, s).mean for s in columns] for data in rows]
    # Each row by its own range: rows differ more than columns, which are what is compared.
    sign = 1 if table.more_is_better else -1
    good = [[sign * v for v in row] for row in values]
    shades = [[(v - min(row)) / max(max(row) - min(row), 1e-9) for v in row] for row in good]
    axis.imshow(shades, cmap="Blues", vmax=1.6, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axis.text(x, y, f"{value:.1f}", ha="center", va="center")
    axis.set_xticks(range(len(columns)), map(_label, columns), rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), map(_label, rows))
    axis.set_xlabel(f"population statistics ({table.numbers[-1]} images)")
    axis.set_title(f"{table.metric} of evaluated data (shade: within a row)", fontsize=10)


def _by_images(axis: Any, table: Table, severity: int) -> None:
    """Lines over the number of images; bars where there is one number."""
    rows = domains(table.options, severity)
    if len(table.numbers) == 1:
        series = {
            "the checkpoint's statistics": [table.estimate(d, CHECKPOINT) for d in rows],
            "their own statistics": [table.estimate(d, d) for d in rows],
        }
        bars([d.replace("_", "\n") for d in rows], series, table.metric, axis)
        axis.legend(fontsize=8)
        return
    for number, domain in enumerate(rows):
        x = [int(n) if n != ALL else 2 * int(table.numbers[-2]) for n in table.numbers]
        own = [table.estimate(domain, domain, n).mean for n in table.numbers]
        looks = style(domain, number)
        axis.plot(x, own, marker="o", label=_label(domain), **looks)
        under_checkpoint = table.estimate(domain, CHECKPOINT).mean
        axis.axhline(under_checkpoint, color=looks["color"], ls="--", lw=1)
    axis.set_xscale("log")
    axis.set_xlabel("images for the statistics")
    axis.set_ylabel(table.metric)
    axis.set_title("own statistics; dashed: the checkpoint's", fontsize=10)
    axis.legend(fontsize=8)


def _label(domain: str) -> str:
    return domain.replace("_", " ")
