"""Means over seeds, paired differences, and what they say about a claim."""

from collections.abc import Sequence

from ..study.estimates import Estimate, over_seeds


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """first - second, paired by seed."""
    return over_seeds([a - b for a, b in zip(first, second, strict=True)])


def cell(estimate: Estimate, digits: int = 1, sign: str = "") -> str:
    """Such as "3.2 [2.9, 3.5]", the mean and its 95% interval."""
    text = f"{estimate.mean:{sign}.{digits}f}"
    if estimate.low == estimate.low:
        text += f" [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"
    return text


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
