"""Means over seeds with their intervals, and differences that are paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A quantity of an arm over its seeds.

    Attributes:
        mean: the mean over the seeds. low, high: its 95% interval; NaN where there is none.
        spread: standard deviation over the seeds; NaN for one seed.
        values: one per seed.
    """

    mean: float
    low: float
    high: float
    spread: float
    values: tuple[float, ...]

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)

    def text(self, digits: int, between: str = " ") -> str:
        """Format such as "41.7 ± 0.4 [41.2, 42.2]"; unknown parts are left out."""
        text = f"{self.mean:.{digits}f}"
        if not math.isnan(self.spread):
            text += f" ± {self.spread:.{digits}f}"
        if self.has_interval:
            text += f"{between}[{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return text

    def cell(self, digits: int = 1, sign: str = "") -> str:
        """Format such as "3.2 [2.9, 3.5]"; `sign` "+" shows the sign of positive numbers, too."""

        def spell(value: float) -> str:
            return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # -0.0 is 0.0

        if not self.has_interval:
            return spell(self.mean)
        return f"{spell(self.mean)} [{spell(self.low)}, {spell(self.high)}]"


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Return `mean_of` the values; None without any."""
    return mean_of(values) if values else None


def mean_of(values: Sequence[float]) -> Estimate:
    """Return the mean of at least one value, and Student's 95% interval of the mean.

    The interval says what another set of seeds would give. One value has no interval.
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, tuple(values))
    from scipy import stats

    spread = statistics.stdev(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, spread, tuple(values))


def with_interval(intervals: Sequence[Mapping[str, float]]) -> Estimate | None:
    """Estimate a quantity that comes with an interval {mean, low, high} for each seed.

    With one seed that interval is all there is; with several, the seeds' interval counts. Where all
    seeds are equal that would be a point, as if 0 flips of 640 were never more; then it is the
    widest of theirs.
    """
    estimate = over_seeds([interval["mean"] for interval in intervals])
    if estimate is None or (len(intervals) > 1 and estimate.spread > 0):
        return estimate
    low, high = min(i["low"] for i in intervals), max(i["high"] for i in intervals)
    return Estimate(estimate.mean, low, high, estimate.spread, estimate.values)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """Estimate first - second, paired by the seeds that both have."""
    return over_seeds([first[seed] - second[seed] for seed in first if seed in second])


def two_sided_p(estimate: Estimate) -> float:
    """Return the p-value of Student's test that the mean over seeds is 0; NaN with one seed."""
    number = len(estimate.values)
    if number < 2:
        return math.nan
    if estimate.spread == 0:
        return float(estimate.mean == 0)
    from scipy import stats

    t = abs(estimate.mean) / (estimate.spread / math.sqrt(number))
    return float(2 * stats.t.sf(t, number - 1))
