"""The look of all figures: their colours, panels, bars, and lines with bands.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. Matplotlib is
imported when something is drawn.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .columns import Result
from .estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREYS = {"minibatch": "0.75", "population": "0.55", "precise": "0.35"}  # colours are for arms
LINES, HATCHES = ("-", "--", ":"), ("", "///", "...")  # for what comes after all colours
WIDEST = 14.0  # of a figure, inches: a report shows it at about this width
_arms: list[str] = []  # of the report that is being drawn

# Arm -> what the runs of its seeds gave, in the arms' order; never empty.
Results = Mapping[str, list[Result]]


@dataclass(frozen=True)
class Picture:
    """A figure: its file name, its caption, and how it is drawn (None: there is nothing to)."""

    name: str
    caption: str
    draw: "Callable[[Results], Figure | None]"


@contextlib.contextmanager
def arms_of_report(names: Iterable[str]) -> Iterator[None]:
    """Give each of these arms the same look in all figures that are drawn meanwhile."""
    before = list(_arms)
    _arms[:] = names
    try:
        yield
    finally:
        _arms[:] = before


def style(name: str, number: int = 0, *, filled: bool = False) -> dict[str, Any]:
    """Return the arguments of `plot`, or of `bar` where it is filled, for a series.

    Args:
        name: an arm of the report or a kind of statistics, which look alike everywhere.
        number: the place of a series that is neither.
    """
    place = _arms.index(name) if name in _arms else number
    used, place = divmod(place, len(COLOURS))
    colour = GREYS.get(name, COLOURS[place])
    if filled:
        hatch = HATCHES[used % len(HATCHES)]
        return {"facecolor": colour, "edgecolor": "white", "linewidth": 0, "hatch": hatch}
    return {"color": colour, "linestyle": LINES[used % len(LINES)]}


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def panels(number: int, width: float, height: float, **more: Any) -> tuple["Figure", list["Axes"]]:
    """Return a figure with so many panels of this size in inches, in rows no wider than WIDEST."""
    columns = min(number, int(WIDEST // width))
    rows = -(-number // columns)
    figure = new_figure(columns * width, rows * height)
    figure.set_layout_engine("constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **more).flat)
    for axis in axes[number:]:
        axis.remove()
    return figure, axes[:number]


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Estimate | None]],
    label: str,
    axis: "Axes | None" = None,
    **more: Sequence[Any],
) -> "Figure":
    """Draw a bar for each series within each group, with dots for seeds and lines for intervals.

    Args:
        groups: labels on the x axis. series: name -> one estimate per group.
        label: of the y axis.
        axis: where to draw in a figure of the caller's; default: the returned figure.
        more: arguments of `Axes.bar`, each with a value for each series.
    """
    figure = new_figure(min(WIDEST, max(5.0, 1.5 * len(groups) + 1)), 3.6)
    if axis is None:
        axis = figure.subplots()
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        at = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        means = [v.mean if v else float("nan") for v in values]
        looks = style(name, number, filled=True) | {key: each[number] for key, each in more.items()}
        axis.bar(at, means, 0.92 * width, label=name, **looks)
        for x, value in zip(at, values, strict=True):
            if value is not None:
                whisker(axis, [x, x], value)
                dots(axis, [x] * len(value.values), value.values)
    axis.set_xticks(range(len(groups)), [wrapped(group) for group in groups], fontsize=8)
    axis.set_ylabel(label)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def dots(axis: "Axes", x: Sequence[float], y: Sequence[float]) -> None:
    """Draw the values of seeds."""
    axis.plot(x, y, "o", color="white", mec="black", mew=0.6, ms=3)


def whisker(axis: "Axes", x: Sequence[float], estimate: Estimate) -> None:
    """Draw a vertical line over the interval, if there is one."""
    if estimate.has_interval:
        axis.plot(x, [estimate.low, estimate.high], color="black", lw=1)


def band(
    axis: "Axes", x: Sequence[float], estimates: Sequence[Estimate], label: str, **looks: Any
) -> None:
    """Draw a line over the means with a band over the intervals; `looks` has a color."""
    axis.plot(x, [e.mean for e in estimates], marker=".", label=label, **looks)
    low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
    axis.fill_between(x, low, high, color=looks["color"], alpha=0.2, linewidth=0)


def without_shared_prefix(names: Sequence[str]) -> list[str]:
    """Return dotted names without the parents that all of them have in common."""
    parents = [name.split(".")[:-1] for name in names]
    levels = zip(*parents, strict=False)
    shared = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))
    return [".".join(name.split(".")[shared:]) for name in names]


def wrapped(text: str, words_per_line: int = 2) -> str:
    """Return `text` with a line break after every few words."""
    words, step = text.split(" "), words_per_line
    return "\n".join(" ".join(words[i : i + step]) for i in range(0, len(words), step))
