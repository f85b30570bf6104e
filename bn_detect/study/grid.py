"""Grids: named option sets that multiply templates out, such as an arm "{network}, {images}"."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

Grid = Mapping[str, Mapping[str, dict[str, Any]]]  # axis -> value -> config keys


def expanded(template: Any, grid: Grid) -> Iterator[tuple[dict[str, str], Any]]:
    """Yield each place in the grid with `template` filled in for it.

    Only the axes that some text in the template names as {axis} multiply it; without any it comes
    once, as it is.
    """
    axes = [axis for axis in grid if filled_in(template, {axis: ""}) != template]
    for values in product(*(grid[axis] for axis in axes)):
        place = dict(zip(axes, values, strict=True))
        yield place, filled_in(template, place)


def filled_in(template: Any, place: Mapping[str, str]) -> Any:
    """Return `template` with the values of a place in every text of it."""
    if isinstance(template, str):
        for axis, value in place.items():
            template = template.replace("{" + axis + "}", value)
        return template
    if isinstance(template, Mapping):
        return {key: filled_in(value, place) for key, value in template.items()}
    if isinstance(template, list):
        return [filled_in(item, place) for item in template]
    return template
