"""Means over seeds with their intervals; differences paired by seed."""

import math

import pytest

from bn_detect.reporting.estimates import difference, over_seeds, with_interval


def test_interval_over_seeds_is_students():
    estimate = over_seeds([40.0, 42.0, 44.0])
    # t quantile of 2 degrees of freedom, 4.3027; standard error 2 / sqrt(3).
    assert estimate.mean == 42 and estimate.spread == pytest.approx(2)
    assert estimate.high - 42 == pytest.approx(4.3027 * 2 / math.sqrt(3), rel=1e-4)
    assert 42 - estimate.low == pytest.approx(estimate.high - 42)
    assert estimate.text(1) == "42.0 ± 2.0 [37.0, 47.0]"
    assert estimate.cell(sign="+") == "+42.0 [+37.0, +47.0]"


def test_one_seed_has_the_interval_of_its_probe_or_none():
    assert over_seeds([]) is None and with_interval([]) is None
    assert over_seeds([3.14]).text(1) == over_seeds([3.14]).cell() == "3.1"
    interval = {"mean": 0.5, "low": 0.49, "high": 0.51}
    assert with_interval([interval]).text(2) == "0.50 [0.49, 0.51]"
    assert with_interval([interval, {**interval, "mean": 0.6}]) == over_seeds([0.5, 0.6])


def test_differences_are_paired_by_seed():
    gap = difference({1: 5.0, 2: 7.0, 3: 9.0}, {3: 8.0, 2: 6.0, 1: 4.0, 4: 100.0})
    assert gap.values == (1.0, 1.0, 1.0) and (gap.low, gap.high) == (1.0, 1.0)
    assert difference({1: 5.0}, {2: 5.0}) is None
    assert over_seeds([-0.01, 0.01]).cell().startswith("0.0 [")  # not -0.0
