"""The report of a companion swap: means over RoIs with their intervals, and the verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from ..intervals import Contrast, Interval, bootstrap, contrast, rate
from .companions import NULLS
from .targets import FlipExample, Target, chosen, columns
from .verdicts import answers_of, phrase, predicate


@dataclass(frozen=True)
class Swap:
    """The effect of the plain swap on a loss.

    Attributes:
        own: the loss under the RoIs' own companions.
        change: the loss under companions from other images, minus `own`.
        null: the loss under other RoIs of the own companions' images, minus `own`.
    """

    own: Interval
    change: Interval
    null: Interval


@dataclass(frozen=True)
class SwapRow:
    """One swap beside its null, on the RoIs for which there were companions of both.

    Attributes:
        change, null: of the classification loss in nats, against the RoIs' own companions.
        flip_rate, null_flip_rate: share of RoIs whose predicted class changes.
        rois: how many were measured.
        not_measured: how many were not: the rule found too few companions or, for foreground, the
            number would not change.
    """

    change: Interval
    null: Interval
    flip_rate: Interval
    null_flip_rate: Interval
    rois: int
    not_measured: int


@dataclass(frozen=True)
class Dependence:
    """A difference between two swaps of the same RoIs, in nats of classification loss.

    Attributes:
        all: over RoIs as training samples them; the verdict is about this one. Its p is that of
            the difference alone; the verdict's knows the question's control, too.
        foreground: over foreground RoIs alone.
    """

    all: Contrast
    foreground: Contrast


@dataclass(frozen=True)
class SwapReport:
    """The result of `companion_swap`; `print` shows its tables.

    Means are over RoIs as training samples them: targets are drawn half from foreground, and weigh
    as many RoIs as they stand for. Intervals are 95%: of means by bootstrap over images, of rates
    exact. A head leaks where `change` is above 0 and above `null`; slightly below 0 is no leakage:
    companions from a RoI's own image may do it a little harm.

    Attributes:
        classification, classification_foreground, classification_background: the plain swap's
            classification loss in nats, of all, of foreground and of background RoIs.
        box: the same of the box loss of foreground RoIs, in the loss's own units.
        flip_rate, null_flip_rate: share of RoIs whose predicted class changes in the plain swap.
        swaps: every swap of `companions`, by name.
        label_leakage, image_dependence, foreground_dependence: see `companion_swap`.
        verdict: what the head reads, by these three; see `verdicts.answers`.
        images, rois: how many were measured.
        filled: RoIs for which plain had to take companions of more images, or some twice.
        background: the class index of background.
        per_roi: the RoIs that were measured, column by column: "image" (its number in this run of
            the probe), "label", "weight" (how many RoIs it stands for), and three columns for its
            own companions (`own_...`) and for every swap and null: `..._classification`,
            `..._box`, `..._prediction`; None where it was not measured. "swapped" is plain.
        flips: at most 8 examples of the plain swap, of different images; foreground before
            background, and those whose loss rises most first.
    """

    classification: Swap
    classification_foreground: Swap
    classification_background: Swap
    box: Swap
    flip_rate: Interval
    null_flip_rate: Interval
    swaps: dict[str, SwapRow]
    label_leakage: Dependence
    image_dependence: Dependence
    foreground_dependence: Dependence
    verdict: str
    images: int
    rois: int
    filled: int
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
        plain = tabulate(rows, headers=headers, disable_numparse=True)
        rows = [
            [name, s.change, s.null, s.flip_rate, s.null_flip_rate, s.rois, s.not_measured]
            for name, s in self.swaps.items()
        ]
        headers = ["companions", "change (nats)", "null", "flipped", "null", "RoIs", "not measured"]
        every = tabulate(rows, headers=headers, disable_numparse=True)
        rows = [
            [a.question.name, d.all, d.foreground, f"{a.p:.4f}", f"{a.detectable:.4f}", a.rois]
            for a in answers_of(vars(self))
            for d in [getattr(self, a.question.field)]
        ]
        headers = ["nats", "all RoIs", "foreground", "p", "detectable", "RoIs"]
        differences = tabulate(rows, headers=headers, disable_numparse=True)
        return f"{plain}\n\n{every}\n\n{differences}\n\nThe head {self.verdict}."


def swap_report(
    targets: Sequence[Target],
    flips: Sequence[tuple[Target, FlipExample]],
    background: int,
    seed: int,
) -> SwapReport:
    """Summarize the targets, and those that flip; `seed` of the bootstrap."""
    foreground = [t for t in targets if t.foreground]
    swaps = {name: _row(targets, name, null, seed) for name, null in NULLS.items()}
    per_roi = columns(targets)
    found = answers_of({"per_roi": per_roi})
    # Where no loss changes at all under any swap, few images are enough.
    reads_any = not targets or any(t.change(name) for t in targets for name in t.readings)
    return SwapReport(
        _plain(targets, "classification", seed),
        _plain(foreground, "classification", seed),
        _plain([t for t in targets if not t.foreground], "classification", seed),
        _plain(foreground, "box", seed),
        flip_rate=_rate(targets, "plain", seed),
        null_flip_rate=_rate(targets, "resampled", seed),
        swaps=swaps,
        **{
            q.field: _dependence(targets, q.after, q.before, seed)
            for q in (answer.question for answer in found)
        },
        verdict=predicate(found) if reads_any else phrase([]),
        images=len({t.image for t in targets}),
        rois=len(targets),
        filled=sum(t.filled for t in targets),
        background=background,
        per_roi=per_roi,
        flips=chosen(flips),
    )


def _plain(targets: Sequence[Target], loss: str, seed: int) -> Swap:
    def mean(of: Sequence[Target], value: Callable[[Target], float]) -> Interval:
        return bootstrap([value(t) for t in of], _images(of), _weights(of), seed=seed)

    return Swap(
        mean(targets, lambda t: float(getattr(t.readings["own"], loss))),
        mean(targets, lambda t: t.change("plain", loss=loss)),
        mean(_measured(targets, "resampled"), lambda t: t.change("resampled", loss=loss)),
    )


def _rate(targets: Sequence[Target], name: str, seed: int) -> Interval:
    of = _measured(targets, name)
    return rate([t.flips(name) for t in of], _images(of), _weights(of), seed=seed)


def _row(targets: Sequence[Target], name: str, null: str, seed: int) -> SwapRow:
    of = _measured(targets, name, null)
    change, null_change = (
        bootstrap([t.change(each) for t in of], _images(of), _weights(of), seed=seed)
        for each in (name, null)
    )
    flip_rate, null_flip_rate = (_rate(of, each, seed) for each in (name, null))
    left_out = len(targets) - len(of)
    return SwapRow(change, null_change, flip_rate, null_flip_rate, len(of), left_out)


def _dependence(targets: Sequence[Target], after: str, before: str, seed: int) -> Dependence:
    def difference(of: Sequence[Target]) -> Contrast:
        changes = [t.change(after, before) for t in of]
        return contrast(changes, _images(of), _weights(of), seed=seed)

    of = _measured(targets, after, before)
    return Dependence(difference(of), difference([t for t in of if t.foreground]))


def _measured(targets: Sequence[Target], *names: str) -> list[Target]:
    return [t for t in targets if all(name in t.readings for name in names)]


def _images(targets: Sequence[Target]) -> list[int]:
    return [t.image for t in targets]


def _weights(targets: Sequence[Target]) -> list[float]:
    return [t.weight for t in targets]
