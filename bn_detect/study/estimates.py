"""A mean over seeds with its interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A quantity of an arm over its seeds.

    Attributes:
        mean: over the seeds. low, high: its 95% interval; NaN where there is none.
        spread: standard deviation over the seeds; NaN for one seed.
        values: one per seed.
    """

    mean: float
    low: float
    high: float
    spread: float
    values: tuple[float, ...]

    def text(self, digits: int, between: str = " ") -> str:
        """Such as "41.7 ± 0.4 [41.2, 42.2]"; parts that are not known are left out."""
        text = f"{self.mean:.{digits}f}"
        if not math.isnan(self.spread):
            text += f" ± {self.spread:.{digits}f}"
        if not math.isnan(self.low):
            text += f"{between}[{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return text


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean and Student's 95% interval of at least one value; None of none.

    The interval is for the mean over seeds, that is for what another set of seeds would give.
    """
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, tuple(values))
    spread = statistics.stdev(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, spread, tuple(values))


def with_interval(intervals: Sequence[dict]) -> Estimate | None:
    """Of quantities that come with an interval {mean, low, high}, one per seed.

    With one seed that interval is all there is; with several it is the seeds' that counts.
    """
    estimate = over_seeds([interval["mean"] for interval in intervals])
    if len(intervals) != 1:
        return estimate
    (only,) = intervals
    return Estimate(only["mean"], only["low"], only["high"], math.nan, estimate.values)
