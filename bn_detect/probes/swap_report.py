"""What a companion swap found."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tabulate import tabulate

from .bootstrap import Interval, bootstrap

FLIPS = 8  # examples that a report keeps

Place = tuple[str | None, tuple[float, ...]]  # an image file, and x0, y0, x1, y1 in its pixels


@dataclass(frozen=True)
class Reading:
    """Of a RoI in one group: classification loss (nats), box loss (0 for background), class."""

    classification: float
    box: float
    prediction: int


@dataclass(frozen=True)
class FlipExample:
    """A RoI whose prediction depends on its companions; what a picture of it needs.

    Attributes:
        file_name: of its image; None where unknown. box: x0, y0, x1, y1 in that image's pixels.
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
        image: number of its image in the run of the probe.
        label: class index. foreground: whether it is none of background.
        weight: how many RoIs it stands for: those of its image and kind, per target among them.
        own, swapped, resampled: readings under its own companions, under foreign ones, and under
            others of its own images (None where there were too few).
    """

    image: int
    label: int
    foreground: bool
    weight: float
    own: Reading
    swapped: Reading
    resampled: Reading | None

    @property
    def change(self) -> float:
        """Of the classification loss, swapped minus own."""
        return self.swapped.classification - self.own.classification


@dataclass(frozen=True)
class Swap:
    """What swapping companions does to a loss.

    Attributes:
        own: the loss under the RoIs' own companions.
        change: the loss under companions from other images, minus `own`.
        null: the loss under other RoIs of the own companions' images, minus `own`: what resampling
            alone does.
    """

    own: Interval
    change: Interval
    null: Interval


@dataclass(frozen=True)
class SwapReport:
    """What `companion_swap` found; `print` shows a table.

    Means are over RoIs as training samples them: targets are drawn half from foreground, and weigh
    as many RoIs as they stand for. Intervals are 95%, by bootstrap over images. A head leaks where
    `change` is above 0 and above `null`; slightly below 0 is no leakage: companions from a RoI's
    own image may do it a little harm.

    Attributes:
        classification, classification_foreground, classification_background: classification loss
            in nats, of all, of foreground and of background RoIs.
        box: box loss of a foreground RoI, in the loss's own units.
        flip_rate, null_flip_rate: share of RoIs whose predicted class changes.
        images, rois: how many were measured.
        background: the class index of background.
        per_roi: the RoIs that were measured, column by column: "image" (its number in this run of
            the probe), "label", "weight" (how many RoIs it stands for), and "own_...",
            "swapped_..." and "resampled_..." for each of `Reading`; None where nothing could be
            resampled.
        flips: at most 8 examples, of different images; foreground before background, and those
            whose loss rises most first.
    """

    classification: Swap
    classification_foreground: Swap
    classification_background: Swap
    box: Swap
    flip_rate: Interval
    null_flip_rate: Interval
    images: int
    rois: int
    background: int
    per_roi: dict[str, list[Any]]
    flips: tuple[FlipExample, ...]

    def __str__(self) -> str:
        losses = {
            "classification (nats)": self.classification,
            "of foreground": self.classification_foreground,
            "of background": self.classification_background,
            "box, foreground": self.box,
        }
        rows = [[name, swap.own, swap.change, swap.null] for name, swap in losses.items()]
        rows.append(["flipped predictions", "", self.flip_rate, self.null_flip_rate])
        headers = [f"{self.rois} RoIs of {self.images} images", "loss", "swapped", "resampled"]
        return str(tabulate(rows, headers=headers, disable_numparse=True))


def swap_report(
    targets: Sequence[Target],
    flips: Sequence[tuple[Target, FlipExample]],
    background: int,
    seed: int,
) -> SwapReport:
    """The report of all targets, with those that flip; `seed` of the bootstrap."""
    foreground = [t for t in targets if t.foreground]
    return SwapReport(
        _swap(targets, "classification", seed),
        _swap(foreground, "classification", seed),
        _swap([t for t in targets if not t.foreground], "classification", seed),
        _swap(foreground, "box", seed),
        flip_rate=_flip_rate([(t, t.swapped) for t in targets], seed),
        null_flip_rate=_flip_rate([(t, t.resampled) for t in targets if t.resampled], seed),
        images=len({t.image for t in targets}),
        rois=len(targets),
        background=background,
        per_roi=_columns(targets),
        flips=_chosen(flips),
    )


def _columns(targets: Sequence[Target]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "image": [t.image for t in targets],
        "label": [t.label for t in targets],
        "weight": [t.weight for t in targets],
    }
    for under in ("own", "swapped", "resampled"):
        for field in fields(Reading):
            found = [getattr(getattr(t, under), field.name, None) for t in targets]
            columns[f"{under}_{field.name}"] = [
                round(value, 6) if isinstance(value, float) else value for value in found
            ]
    return columns


def _swap(targets: Sequence[Target], loss: str, seed: int) -> Swap:
    def mean(values: list[tuple[Target, float]]) -> Interval:
        return _mean(values, seed)

    resampled = [t for t in targets if t.resampled]
    return Swap(
        mean([(t, getattr(t.own, loss)) for t in targets]),
        mean([(t, getattr(t.swapped, loss) - getattr(t.own, loss)) for t in targets]),
        mean([(t, getattr(t.resampled, loss) - getattr(t.own, loss)) for t in resampled]),
    )


def _flip_rate(pairs: Sequence[tuple[Target, Reading]], seed: int) -> Interval:
    return _mean([(t, t.own.prediction != other.prediction) for t, other in pairs], seed)


def _mean(values: Sequence[tuple[Target, float]], seed: int) -> Interval:
    return bootstrap(
        [value for _, value in values],
        [t.image for t, _ in values],
        [t.weight for t, _ in values],
        seed=seed,
    )


def _chosen(flips: Sequence[tuple[Target, FlipExample]]) -> tuple[FlipExample, ...]:
    ranked = sorted(flips, key=lambda pair: (not pair[0].foreground, -pair[0].change))
    of_image: dict[int, FlipExample] = {}
    for target, flip in ranked:
        of_image.setdefault(target.image, flip)
    return tuple(of_image.values())[:FLIPS]
