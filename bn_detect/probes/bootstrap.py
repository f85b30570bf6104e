"""Confidence intervals by the bootstrap (Efron 1979) over images.

Images are the units that are drawn independently; the RoIs of one image are not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


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


def bootstrap(
    values: Sequence[float],
    images: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """Return the weighted mean of `values`, with percentiles over resampled images.

    Args:
        values: one per RoI.
        images: the image that each value comes from. Images are drawn with replacement, each with
            all of its values.
        weights: of the values, not negative; None: equal weights.
        seed: of the draws.
    """
    x = np.asarray(values, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if not w.sum() > 0:
        return Interval(math.nan, math.nan, math.nan)
    _, unit = np.unique(np.asarray(images), return_inverse=True)
    sums = np.bincount(unit, w * x)
    totals = np.bincount(unit, w)
    draws = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES
    )
    drawn = draws @ totals
    means = (draws @ sums)[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sums.sum() / totals.sum()), float(low), float(high))
