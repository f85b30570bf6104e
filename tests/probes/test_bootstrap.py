"""Intervals, against the normal approximation."""

import math

import numpy as np
import pytest

from bn_detect.probes.bootstrap import Interval, bootstrap


def test_images_are_the_units():
    """100 images with 5 equal values each: the error is that of 100 values."""
    each = np.random.default_rng(0).standard_normal(100)
    found = bootstrap(np.repeat(each, 5), np.repeat(np.arange(100), 5))
    assert found.mean == pytest.approx(each.mean())
    half = 1.96 * each.std() / 10
    assert found.low == pytest.approx(each.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(each.mean() + half, abs=0.1 * half)


def test_weights_count_as_copies():
    values, images = [1.0, 2.0, 4.0, 0.0], [0, 0, 1, 2]
    copies = bootstrap([1.0, 2.0, 2.0, 2.0, 4.0, 0.0, 0.0], [0, 0, 0, 0, 1, 2, 2])
    weighted = bootstrap(values, images, [1, 3, 1, 2])
    assert (weighted.mean, weighted.low, weighted.high) == pytest.approx(
        (copies.mean, copies.low, copies.high)
    )


def test_the_interval_covers():
    rng = np.random.default_rng(0)
    found = [
        bootstrap(rng.normal(3, 1, 60), np.arange(60) // 2, rng.random(60), seed=i)
        for i in range(200)
    ]
    assert 0.88 < np.mean([i.low <= 3 <= i.high for i in found]) < 0.99


def test_nothing_and_one():
    assert math.isnan(bootstrap([], []).mean) and str(bootstrap([], [])) == "-"
    assert bootstrap([2.0, 3.0], [7, 7]) == Interval(2.5, 2.5, 2.5)
    assert str(Interval(1, 0.5, 2)) == "1.0000 [0.5000, 2.0000]"
