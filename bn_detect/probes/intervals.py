"""Confidence intervals over images: by the bootstrap for means, exact for rates.

Images are the units that are drawn independently; the RoIs of one image are not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 2000
LEAST_IMAGES = 20  # with fewer there is no test
CONFIDENCE = 0.95
LEVEL = (1 - CONFIDENCE) / 2  # of a one-sided test


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; all three are NaN where nothing was measured."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Contrast(Interval):
    """A mean difference, tested against 0.

    Attributes:
        p: one-sided p-value of a difference above 0, by the bootstrap; at least 1 / 2001. NaN with
            fewer than 20 images, on which the bootstrap finds too much; `error`, too.
        error: the standard error, by the bootstrap.
        rois, images: how many were measured.
    """

    p: float
    error: float
    rois: int
    images: int


def bootstrap(
    values: Sequence[float],
    images: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """Return the weighted mean of `values`, with percentiles over resampled images.

    The bootstrap of Efron (1979) over clusters.

    Args:
        values: one per RoI.
        images: the image that each value comes from. Images are drawn with replacement, each with
            all of its values.
        weights: of the values, not negative; None: equal weights.
        seed: of the draws.
    """
    mean, draws = _resampled(values, images, weights, seed)
    return Interval(mean, *_percentiles(draws))


def contrast(
    differences: Sequence[float],
    images: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Contrast:
    """Test whether paired differences are above 0 on average; arguments as of `bootstrap`."""
    mean, draws = _resampled(differences, images, weights, seed)
    number = len(set(images))
    p = error = math.nan
    if len(draws) and number >= LEAST_IMAGES:
        p = float((1 + (draws <= 0).sum()) / (1 + len(draws)))
        error = float(draws.std())
    return Contrast(mean, *_percentiles(draws), p, error, len(differences), number)


def rate(
    events: Sequence[float],
    images: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """Return the weighted share of `events`, with the exact interval of Clopper & Pearson (1934).

    RoIs of one image are not independent, and have unequal weights; so the interval is that of as
    many independent RoIs as have the same variance (Korn & Graubard 1998), the variance being that
    of the bootstrap. Where no RoI or every RoI is an event there is no variance, and each image
    counts as one RoI: 0 of 640 RoIs in 160 images gives [0, 0.023].

    Args:
        events: one per RoI, 0 or 1, or the share of repetitions with an event. Others as of
            `bootstrap`.
    """
    mean, draws = _resampled(events, images, weights, seed)
    if not len(draws):
        return Interval(mean, mean, mean)
    from scipy.special import betaincinv  # comes with scikit-learn

    w = np.ones(len(events)) if weights is None else np.asarray(weights, dtype=float)
    rois, variance = w.sum() ** 2 / np.square(w).sum(), float(draws.var())
    if variance > 0:
        number = min(rois, max(1.0, mean * (1 - mean) / variance))
    else:
        number = min(rois, float(len(set(images))))
    count, tail = number * mean, LEVEL
    low = 0.0 if mean == 0 else float(betaincinv(count, number - count + 1, tail))
    high = 1.0 if mean == 1 else float(betaincinv(count + 1, number - count, 1 - tail))
    return Interval(mean, low, high)


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Return which of several tests reject, by the correction of Holm (1979); NaN never does.

    The probability that any true null hypothesis is rejected is at most `level`, one-sided.
    """
    rejected = [False] * len(p_values)
    tests = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    for done, (p, i) in enumerate(tests):
        if p > level / (len(tests) - done):
            break
        rejected[i] = True
    return rejected


def _resampled(
    values: Sequence[float], images: Sequence[int], weights: Sequence[float] | None, seed: int
) -> tuple[float, Array]:
    """Return the weighted mean, and the means of resampled images; NaN and [] without weight."""
    x = np.asarray(values, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if not w.sum() > 0:
        return math.nan, np.empty(0)
    _, unit = np.unique(np.asarray(images), return_inverse=True)
    sums = np.bincount(unit, w * x)
    totals = np.bincount(unit, w)
    draws = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES
    )
    drawn = draws @ totals
    means = (draws @ sums)[drawn > 0] / drawn[drawn > 0]
    return float(sums.sum() / totals.sum()), means


def _percentiles(draws: Array) -> tuple[float, float]:
    if not len(draws):
        return math.nan, math.nan
    low, high = np.quantile(draws, [LEVEL, 1 - LEVEL])
    return float(low), float(high)
