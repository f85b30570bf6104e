"""Paired differences and what they say."""

import pytest
from scipy import stats

from bn_detect.experiments.numbers import cell, difference, verdict
from bn_detect.study.estimates import over_seeds


def test_differences_are_paired():
    first, second = [10.0, 20.0, 30.0], [9.0, 18.5, 29.5]
    gap = difference(first, second)
    assert gap.values == (1.0, 1.5, 0.5) and gap.mean == pytest.approx(1.0)
    low, high = stats.t.interval(0.95, 2, loc=1.0, scale=0.5 / 3**0.5)
    assert (gap.low, gap.high) == (pytest.approx(low), pytest.approx(high))
    with pytest.raises(ValueError):
        difference(first, second[:2])


def test_cells():
    assert cell(over_seeds([1.0, 2.0, 3.0])) == "2.0 [-0.5, 4.5]"
    assert cell(over_seeds([1.25]), sign="+") == "+1.2"


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([1.0, 1.2, 0.9], "seen"),
        ([-1.0, -1.2, -0.9], "the opposite was seen"),
        ([1.0, -1.2, 0.9], "not decided by these seeds"),
        ([0.0, 0.0], "not decided by these seeds"),
        ([5.0], "one seed decides nothing"),
    ],
)
def test_verdicts_follow_the_interval(values, answer):
    line = verdict("It rises", difference(values, [0.0] * len(values)))
    assert line.startswith(f"* It rises: **{answer}** (")


def test_an_explanation_stands_where_the_data_do_not_show_it():
    def line(value: float) -> str:
        return verdict("It rises", difference([value, value + 0.1], [0.0, 0.0]), "Because.")

    assert line(5.0).endswith("points).") and line(-0.05).endswith("points). Because.")
