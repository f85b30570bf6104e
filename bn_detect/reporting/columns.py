"""Columns: the single numbers that a measure or a probe gives of one run, with their headers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .estimates import Estimate, over_seeds, with_interval

Result = Mapping[str, Any]  # what a measure keeps of one run
Value = float | Mapping[str, float]  # a number, or an interval {mean, low, high}


@dataclass(frozen=True)
class Column:
    """One quantity of a study's table.

    Attributes:
        key: what figures and verdicts call it. digits: after the point.
        header: with the unit in parentheses at its end, such as "swap (nats)".
        value: its value in a measure's result; None where it was not measured.
        meaning: a sentence that says what the number tells; the report shows it on hover.
        shown: False leaves it out of the table, unless the study asks for it.
    """

    key: str
    header: str
    digits: int
    value: Callable[[Result], Value | None]
    meaning: str = ""
    shown: bool = True

    @property
    def unit(self) -> str:
        """The unit that the header names; "" where it names none."""
        return self.header.rpartition("(")[2][:-1] if self.header.endswith(")") else ""

    def number(self, result: Result) -> float | None:
        """The value as one number: the mean of an interval."""
        value = self.value(result)
        number = value["mean"] if isinstance(value, Mapping) else value
        return None if number is None or math.isnan(number) else float(number)

    def estimate(self, results: Sequence[Result]) -> Estimate | None:
        """The value over the runs of an arm."""
        numbers = [number for r in results if (number := self.number(r)) is not None]
        values = [value for r in results if isinstance(value := self.value(r), Mapping)]
        known = [value for value in values if value["mean"] is not None]
        return with_interval(known) if known else over_seeds(numbers)


def at(*path: str) -> Callable[[Result], Any]:
    """Return a function that looks up nested keys, and gives None where one is missing."""

    def value(tree: Any) -> Any:
        for key in path:
            if not isinstance(tree, Mapping) or key not in tree:
                return None
            tree = tree[key]
        return tree

    return value
