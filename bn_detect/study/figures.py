"""The figures of a report: those of the measures, and those that the study asks for."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.drawing import arms_of_report, band, bars, panels, style
from .measures.registry import MEASURES
from .results import Findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawing = tuple[str, str, Callable[[], "Figure | None"]]  # name, caption, draw


def draw_figures(findings: Findings, folder: Path) -> dict[str, Path]:
    """Draw what was measured; return caption -> PNG, in the order of the report.

    A picture that cannot be drawn, as the images that it shows are gone, stays as it was.
    """
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, caption, draw in _drawings(findings):
        path = folder / f"{name}.png"
        with mpl.rc_context({"text.parse_math": False}):  # a name may hold a dollar sign
            with arms_of_report(findings.arms):
                figure = draw()
            if figure is not None:
                figure.savefig(path, dpi=110, bbox_inches="tight")
        if path.exists():
            drawn[caption] = path
    return drawn


def _drawings(findings: Findings) -> Iterator[Drawing]:
    for measure in findings.measures:
        results = findings.by_arm(measure)
        for picture in MEASURES[measure].figures if results else ():
            yield picture.name, picture.caption, partial(picture.draw, results)
    for chart in findings.study.get("figures") or ():
        draw = _lines if chart["over"] else _bars
        yield chart["name"], chart["caption"], partial(draw, findings, chart)


def _bars(findings: Findings, chart: dict) -> "Figure | None":
    """A group for each arm, a bar for each series."""
    series = {
        each["label"]: [findings.estimate(arm, each["column"]) for arm in findings.arms]
        for each in chart["series"]
    }
    if not any(any(estimates) for estimates in series.values()):
        return None
    return bars(list(findings.arms), series, chart["label"])


def _lines(findings: Findings, chart: dict) -> "Figure | None":
    """A line for each series over an axis of the grid, a panel for each value of another one."""
    arms = findings.study["arms"]
    places = list(dict.fromkeys(arm["at"].get(chart["panels"]) for arm in arms))
    figure, axes = panels(len(places), 4.5, 3.6)
    for axis, panel in zip(axes, places, strict=True):
        for number, series in enumerate(chart["series"]):
            points = [
                (arm["at"][chart["over"]], estimate)
                for arm in arms
                if arm["template"] == series["arm"] and arm["at"].get(chart["panels"]) == panel
                if (estimate := findings.estimate(arm["name"], series["column"]))
            ]
            if points:
                x, estimates = zip(*points, strict=True)
                looks = style(series["label"], number)
                band(axis, [float(value) for value in x], estimates, series["label"], **looks)
        if not axis.lines:
            return None
        values = list(
            dict.fromkeys(a["at"][chart["over"]] for a in arms if chart["over"] in a["at"])
        )
        axis.set_xscale("log", base=2)
        axis.set_xticks([float(value) for value in values], values)
        axis.set_xlabel(chart["over"])
        axis.set_ylabel(chart["label"])
        if chart["log"]:
            axis.set_yscale("symlog", linthresh=5)
            axis.set_ylim(-0.5, 110)
            axis.set_yticks([0, 2, 5, 10, 20, 50], ["0", "2", "5", "10", "20", "50"])
        if panel is not None:
            axis.set_title(panel, fontsize=9)
    axes[0].legend(fontsize=8)
    return figure


def copy_figures(figures: dict[str, Path], folder: Path, prefix: str) -> dict[str, str]:
    """Copy pictures beside a document; return caption -> file name."""
    folder.mkdir(parents=True, exist_ok=True)
    copied = {}
    for caption, path in figures.items():
        copied[caption] = f"{prefix}_{path.name}"
        shutil.copy(path, folder / copied[caption])
    return copied
