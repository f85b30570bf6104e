"""A part of the document: what an experiment found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..study.estimates import Estimate

Found = dict[str, list[dict[str, Any]]]  # arm -> what the run of each seed found, in their order


@dataclass(frozen=True)
class Section:
    """Markdown, and its pictures: file name -> (caption, figure)."""

    text: str
    figures: dict[str, tuple[str, Figure]]


def values(found: Found, arm: str, key: str) -> list[float]:
    """One number of each seed's run."""
    return [run[key] for run in found[arm]]


def band(
    axis: Axes, x: Sequence[float], estimates: Sequence[Estimate], label: str, **style: Any
) -> None:
    """A line with its 95% interval."""
    (line,) = axis.plot(x, [e.mean for e in estimates], ".-", label=label, **style)
    low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
