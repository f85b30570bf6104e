"""Means over seeds, paired differences, and what they say about a claim."""

from collections.abc import Sequence

from ..study.estimates import Estimate, over_seeds


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """first - second, paired by seed."""
    return over_seeds([a - b for a, b in zip(first, second, strict=True)])


def cell(estimate: Estimate, digits: int = 1, sign: str = "") -> str:
    """Such as "3.2 [2.9, 3.5]", the mean and its 95% interval."""

    def spell(value: float) -> str:
        return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # -0.0 is 0.0

    if estimate.low != estimate.low:
        return spell(estimate.mean)
    return f"{spell(estimate.mean)} [{spell(estimate.low)}, {spell(estimate.high)}]"


def verdict(claim: str, gap: Estimate, why: str = "") -> str:
    """A line that says whether the data show that `gap`, in points, is above 0.

    Args:
        why: the explanation that is given where they do not.
    """
    if gap.low > 0:
        answer = "seen"
    elif gap.high < 0:
        answer = "the opposite was seen"
    else:
        answer = "not decided by these seeds" if len(gap.values) > 1 else "one seed decides nothing"
    line = f"* {claim}: **{answer}** ({cell(gap, sign='+')} points)."
    return line if gap.low > 0 or not why else f"{line} {why}"
