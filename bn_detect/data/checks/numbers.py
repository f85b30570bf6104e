"""The test of what counts as a number in an annotation file."""

from numbers import Integral, Real
from typing import Any

LARGEST = 2**63  # ids beyond it do not fit into the evaluation's arrays


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite number of a size that arrays can hold, and no bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    number: Any = value
    return bool(-LARGEST < number < LARGEST)


def is_integer(value: Any) -> bool:
    """Return whether `value` is such a number and an integer."""
    return isinstance(value, Integral) and is_number(value)


def is_box(box: Any) -> bool:
    """Return whether `box` is four numbers."""
    return isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box))
