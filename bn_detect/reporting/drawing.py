"""Bars, lines with bands, and the colours that a study's arms have in all of its figures.

Matplotlib is imported when something is drawn.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def colour(number: int) -> str:
    """Return the colour of the arm or series with this place in the study's order."""
    return f"C{number % 10}"


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Estimate | None]],
    label: str,
    axis: "Axes | None" = None,
) -> "Figure":
    """Draw a bar for each series within each group, with dots for seeds and lines for intervals.

    Args:
        groups: labels on the x axis. series: name -> one estimate per group.
        label: of the y axis.
        axis: where to draw in a figure of the caller's; default: the returned figure.
    """
    figure = new_figure(max(5.0, 1.5 * len(groups) + 1), 3.6)
    if axis is None:
        axis = figure.subplots()
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        at = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        means = [v.mean if v else float("nan") for v in values]
        axis.bar(at, means, 0.92 * width, color=colour(number), label=name)
        for x, value in zip(at, values, strict=True):
            if value is not None:
                axis.plot([x] * len(value.values), value.values, ".", color="black", ms=3)
                whisker(axis, [x, x], value)
    axis.set_xticks(range(len(groups)), [wrapped(group) for group in groups], fontsize=8)
    axis.set_ylabel(label)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def whisker(axis: "Axes", x: Sequence[float], estimate: Estimate) -> None:
    """Draw a vertical line over the interval, if there is one."""
    if estimate.has_interval:
        axis.plot(x, [estimate.low, estimate.high], color="black", lw=1)


def band(
    axis: "Axes", x: Sequence[float], estimates: Sequence[Estimate], label: str, **style: Any
) -> None:
    """Draw a line over the means with a band over the intervals."""
    (line,) = axis.plot(x, [e.mean for e in estimates], ".-", label=label, **style)
    low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def without_shared_prefix(names: Sequence[str]) -> list[str]:
    """Return dotted names without the parents that all of them have in common."""
    parents = [name.split(".")[:-1] for name in names]
    levels = zip(*parents, strict=False)
    shared = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))
    return [".".join(name.split(".")[shared:]) for name in names]


def wrapped(text: str) -> str:
    """Return `text` with a line break after every second word."""
    words = text.split(" ")
    return "\n".join(" ".join(words[i : i + 2]) for i in range(0, len(words), 2))
