"""What experiment (c) found."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from ..study.estimates import Estimate, over_seeds
from .averages import GROUP, MOMENTA, RATE, SAMPLES, SCALES
from .numbers import cell, difference, verdict
from .section import Found, Section, band

PRECISE = len(MOMENTA) + 1  # column of the rows of `errors`
ESTIMATES = {**{i + 1: f"EMA {m}" for i, m in enumerate(MOMENTA)}, PRECISE: "PreciseBN"}
DEFAULT = 1 + MOMENTA.index(0.1)
Errors = np.ndarray  # (checks,), percent


def section_c(found: Found) -> Section:
    """Moving averages against PreciseBN, over training and by number of samples."""
    text = ["## (c) Moving averages against PreciseBN", "", _SETTING]
    for scale in SCALES:
        rows = [
            [
                name,
                *(cell(over_seeds(_each(found, scale, column, of))) for of in _SUMMARIES.values()),
                "" if column == PRECISE else cell(_gap(found, scale, column, early), sign="+"),
            ]
            for column, name in ESTIMATES.items()
        ]
        headers = ["statistics", *_SUMMARIES, "first half - PreciseBN"]
        text += ["", f"### {_name(scale)}", "", "Validation error, %:", ""]
        text += [tabulate(rows, headers, tablefmt="github")]
    text += ["", *_verdicts(found), "", "### Samples for PreciseBN", ""]
    text += [f"Validation error, %, mean over {_draws(found)} draws of the samples:", ""]
    rows = [
        [number, *(cell(over_seeds(_samples(found, s, w, number))) for s, w in _MOMENTS)]
        for number in SAMPLES
    ]
    headers = ["images", *(f"{_name(s)}, {_WHEN[w]}" for s, w in _MOMENTS)]
    text += [tabulate(rows, headers, tablefmt="github"), "", *_sample_verdicts(found)]
    figures = {
        "averages.png": (_CAPTION_ERRORS, _draw_errors(found)),
        "means.png": (_CAPTION_MEANS, _draw_means(found)),
    }
    return Section("\n".join(text), figures)


def early(errors: Errors) -> float:
    """The mean over the first half of the checks."""
    return float(errors[: len(errors) // 2].mean())


_SUMMARIES: dict[str, Callable[[Errors], float]] = {
    "mean over the first half": early,
    "mean over the second half": lambda e: float(e[len(e) // 2 :].mean()),
    "change from check to check, second half": lambda e: float(
        np.abs(np.diff(e[len(e) // 2 :])).mean()
    ),
    "at the end": lambda e: float(e[-1]),
}


def _each(found: Found, scale: int, column: int, of: Callable[[Errors], float]) -> list[float]:
    """By seed."""
    return [of(np.array(run["errors"])[:, column]) for run in found[f"scale_{scale}"]]


def _gap(found: Found, scale: int, column: int, of: Callable[[Errors], float]) -> Estimate:
    return difference(*(_each(found, scale, c, of) for c in (column, PRECISE)))


def _verdicts(found: Found) -> list[str]:
    low, high = SCALES
    slow = ESTIMATES[3]
    gaps = {
        scale: [
            a - b
            for a, b in zip(
                *(_each(found, scale, c, early) for c in (DEFAULT, PRECISE)), strict=True
            )
        ]
        for scale in SCALES
    }
    return [
        *(
            verdict(
                f"{_name(scale)}: {name} is worse than PreciseBN in the first half",
                _gap(found, scale, column, early),
            )
            for scale in SCALES
            for column, name in ((DEFAULT, ESTIMATES[DEFAULT]), (3, slow))
        ),
        verdict(
            f"{ESTIMATES[DEFAULT]} falls behind PreciseBN more where rate and batch are larger",
            difference(gaps[high], gaps[low]),
        ),
    ]


def _sample_verdicts(found: Found) -> list[str]:
    most = SAMPLES[-1]
    lines = []
    for scale, when in _MOMENTS:
        reference = _samples(found, scale, when, most)
        gaps = {n: difference(_samples(found, scale, when, n), reference) for n in SAMPLES[:-1]}
        enough = [n for n, gap in gaps.items() if gap.high < 0.5]
        text = ", ".join(f"{n}: {cell(gap, sign='+')}" for n, gap in gaps.items())
        least = f"{enough[0]} images are" if enough else f"no number below {most} is"
        lines.append(
            f"* {_name(scale)}, {_WHEN[when]}: {least} within 0.5 points of {most} ({text})."
        )
    return lines


def _samples(found: Found, scale: int, when: str, number: int) -> list[float]:
    return [float(np.mean(r["samples"][when][str(number)])) for r in found[f"scale_{scale}"]]


def _draws(found: Found) -> int:
    return len(found[f"scale_{min(SCALES)}"][0]["samples"]["end"][str(SAMPLES[0])])


def _name(scale: int) -> str:
    return f"Batch {SCALES[scale]}, learning rate {RATE * scale:g}"


def _draw_errors(found: Found) -> Figure:
    figure = Figure(figsize=(9, 3.6))
    for axis, scale in zip(figure.subplots(1, 2, sharey=True), SCALES, strict=True):
        runs = [np.array(run["errors"]) for run in found[f"scale_{scale}"]]
        for column, name in ESTIMATES.items():
            style = {"color": "black"} if column == PRECISE else {}
            estimates = [over_seeds(list(row)) for row in np.stack(runs)[:, :, column].T]
            band(axis, runs[0][:, 0], estimates, name, **style)
        axis.set_yscale("log")
        axis.set_ylim(1.5, 110)
        axis.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
        axis.set_title(_name(scale), fontsize=9)
        axis.set_xlabel("iteration")
    figure.axes[0].set_ylabel("validation error, %")
    figure.axes[0].legend(fontsize=8)
    return figure


def _draw_means(found: Found) -> Figure:
    """Of the first seed."""
    figure = Figure(figsize=(9, 3.2))
    for axis, scale in zip(figure.subplots(1, 2), SCALES, strict=True):
        rows = np.array(found[f"scale_{scale}"][0]["means"], dtype=float)
        axis.plot(rows[:, 0], rows[:, 1], color="0.75", lw=0.6, label="mini-batch")
        for column, name in ESTIMATES.items():
            if column != PRECISE:
                axis.plot(rows[:, 0], rows[:, column + 1], lw=1.2, label=name)
        known = ~np.isnan(rows[:, -1])
        axis.plot(rows[known, 0], rows[known, -1], "k.-", lw=1, label="PreciseBN")
        axis.set_title(_name(scale), fontsize=9)
        axis.set_xlabel("iteration")
    figure.axes[0].set_ylabel("mean of a channel")
    figure.axes[0].legend(fontsize=7)
    return figure


_WHEN = {"half": "half-way", "end": "at the end"}
_MOMENTS = [(scale, when) for scale in SCALES for when in _WHEN]
_SETTING = (
    f"One run keeps all moving averages at once, for training does not use them. Two scales of "
    f"total batch and learning rate, over the same number of epochs; the normalization batch is "
    f"{GROUP} images in both. EMA's number is the weight of the newest batch (torch's `momentum`, "
    "1 - lambda in the paper). PreciseBN uses all training images. The paper: EMA is noisy and "
    "late where the learning rate is large; 1,000 to 10,000 samples are near-optimal for PreciseBN."
)
_CAPTION_ERRORS = "Validation error over training: mean and 95% interval."
_CAPTION_MEANS = "One channel's mean in the last BN layer over training, first seed."
