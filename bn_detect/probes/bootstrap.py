"""Intervals by the bootstrap (Efron 1979) over images, the units that are drawn independently."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; all NaN where nothing was measured."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(
    values: Sequence[float],
    images: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """The weighted mean of `values`, and percentiles of it when images are drawn with replacement.

    Args:
        values: one per RoI.
        images: the image that each value comes from; values of one image are drawn together.
        weights: of the values, not negative; default: equal.
        seed: of the draws.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=float)
    if not weights.sum() > 0:
        return Interval(math.nan, math.nan, math.nan)
    _, unit = np.unique(np.asarray(images), return_inverse=True)
    sums = np.bincount(unit, weights * values)
    totals = np.bincount(unit, weights)
    draws = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES
    )
    drawn = draws @ totals
    means = (draws @ sums)[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sums.sum() / totals.sum()), float(low), float(high))
