"""The single RoIs that a companion swap measures, and the readings of each."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..rois import Place
from .companions import NULLS

FLIPS = 8  # examples that a report keeps


@dataclass(frozen=True)
class Reading:
    """The head's outputs for one RoI in one group.

    Attributes:
        classification: loss in nats.
        box: loss; 0 for background.
        prediction: class index.
    """

    classification: float
    box: float
    prediction: int


@dataclass(frozen=True)
class FlipExample:
    """A RoI whose prediction depends on its companions, with all that a picture of it needs.

    Attributes:
        file_name: of its image; None where unknown.
        box: x0, y0, x1, y1 in pixels of that image.
        label, own_prediction, swapped_prediction: class indices in the model's own convention.
        own_companions, foreign_companions: (file_name, box) of some of them, foreground first.
    """

    file_name: str | None
    box: tuple[float, ...]
    label: int
    own_prediction: int
    swapped_prediction: int
    own_companions: tuple[Place, ...]
    foreign_companions: tuple[Place, ...]


@dataclass(frozen=True)
class Target:
    """One RoI that was measured.

    Attributes:
        image: number of its image in this run of the probe.
        label: class index.
        foreground: whether it is not background.
        weight: how many RoIs it stands for.
        readings: "own", and those under each swap and null for which there were companions.
        filled: whether plain had to take companions from more images than its rule says, or twice.
    """

    image: int
    label: int
    foreground: bool
    weight: float
    readings: dict[str, Reading]
    filled: bool

    def change(self, after: str, before: str = "own", loss: str = "classification") -> float:
        """Return how much a loss rises from one set of companions to another."""
        first, last = self.readings[before], self.readings[after]
        return float(getattr(last, loss) - getattr(first, loss))

    def flips(self, after: str) -> bool:
        """Return whether the predicted class is another one than with its own companions."""
        return self.readings[after].prediction != self.readings["own"].prediction


def columns(targets: Sequence[Target]) -> dict[str, list[Any]]:
    """Return all readings, column by column; see `SwapReport.per_roi`."""
    table: dict[str, list[Any]] = {
        "image": [t.image for t in targets],
        "label": [t.label for t in targets],
        "weight": [t.weight for t in targets],
    }
    for name in ("own", *NULLS, *dict.fromkeys(NULLS.values())):
        for field in fields(Reading):
            values = [getattr(t.readings.get(name), field.name, None) for t in targets]
            table[f"{'swapped' if name == 'plain' else name}_{field.name}"] = [
                round(value, 6) if isinstance(value, float) else value for value in values
            ]
    return table


def chosen(flips: Sequence[tuple[Target, FlipExample]]) -> tuple[FlipExample, ...]:
    """Choose the examples that a report keeps; see `SwapReport.flips`."""
    ranked = sorted(flips, key=lambda pair: (not pair[0].foreground, -pair[0].change("plain")))
    of_image: dict[int, FlipExample] = {}
    for target, flip in ranked:
        of_image.setdefault(target.image, flip)
    return tuple(of_image.values())[:FLIPS]
