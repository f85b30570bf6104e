"""Intervals and tests, against closed forms and in repeated experiments."""

import math

import numpy as np
import pytest

from bn_detect.probes.intervals import Interval, bootstrap, contrast, holm, rate


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


def test_rates_of_independent_rois_are_clopper_and_pearsons():
    """Textbook values: 0 of 10, 10 of 10, and 10 of 100."""
    images = np.arange(100)
    none = rate([False] * 10, images[:10])
    assert (none.mean, none.low, none.high) == pytest.approx((0, 0, 0.30850), abs=1e-5)
    every = rate([True] * 10, images[:10])
    assert (every.mean, every.low, every.high) == pytest.approx((1, 0.69150, 1), abs=1e-5)
    some = rate(images < 10, images)
    assert (some.mean, some.low, some.high) == pytest.approx((0.1, 0.0490, 0.1762), abs=0.01)


def test_rates_where_rois_of_an_image_are_alike():
    images = np.repeat(np.arange(50), 4)
    alike = rate(images < 10, images)  # all four of an image, or none
    single = rate(np.arange(50) < 10, np.arange(50))
    assert alike.mean == single.mean == pytest.approx(0.2)
    assert (alike.low, alike.high) == pytest.approx((single.low, single.high), abs=0.02)
    nothing = rate([False] * 640, np.arange(640) // 4)
    assert nothing.low == 0 and nothing.high == pytest.approx(1 - 0.025 ** (1 / 160))
    assert str(rate([], [])) == "-"
    assert rate([True, False], [3, 3]).low < 0.5 < rate([True, False], [3, 3]).high


@pytest.mark.parametrize("truth", [0.01, 0.1, 0.5])
def test_rates_cover(truth):
    rng = np.random.default_rng(0)
    inside = []
    for seed in range(200):
        image_truth = rng.beta(5 * truth, 5 * (1 - truth), 60)  # images differ
        events = rng.random((60, 3)) < image_truth[:, None]
        found = rate(
            events.flatten(), np.repeat(np.arange(60), 3), rng.random(180) + 0.5, seed=seed
        )
        inside.append(found.low <= truth <= found.high)
    assert np.mean(inside) > 0.92


def test_contrasts():
    rng = np.random.default_rng(0)
    values, images = rng.normal(0.3, 1, 400), np.arange(400) // 2
    found = contrast(values, images)
    plain = bootstrap(values, images)
    assert (found.mean, found.low, found.high) == (plain.mean, plain.low, plain.high)
    assert found.p < 0.001 and (found.rois, found.images) == (400, 200)
    assert found.error == pytest.approx(1 / 20, rel=0.15)
    assert contrast(-values, images).p > 0.999 and contrast([0.0] * 20, range(20)).p == 1
    nothing = contrast([], [])
    assert math.isnan(nothing.p) and nothing.rois == 0 and str(nothing) == "-"


def test_p_values_are_uniform_where_there_is_nothing():
    rng = np.random.default_rng(1)
    ps = [contrast(rng.normal(0, 1, 120), np.arange(120) // 2, seed=i).p for i in range(300)]
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(ps) == pytest.approx(0.5, abs=0.05)


def test_holm():
    nan = math.nan
    assert holm([0.001, 0.02, 0.012]) == [True, True, True]
    assert holm([0.001, 0.02, 0.013]) == [True, False, False]
    assert holm([0.009, 0.009, 0.009]) == [False, False, False]
    assert holm([0.02, nan, nan]) == [True, False, False] and holm([]) == []
    assert holm([0.03], level=0.05) == [True]


def test_a_few_images_prove_nothing():
    """Twenty images are the fewest on which differences are tested."""
    few, enough = (contrast([1.0] * n, range(n)) for n in (19, 20))
    assert few.mean == 1 and math.isnan(few.p) and math.isnan(few.error)
    assert enough.p < 0.001


@pytest.mark.parametrize(
    ("images", "normal", "skewed"), [(20, 0.046, 0.077), (60, 0.026, 0.062), (120, 0.022, 0.035)]
)
def test_how_often_few_images_find_something_where_there_is_nothing(images, normal, skewed):
    """The rates that docs/probes.md states, of a test at 2.5%."""
    rng = np.random.default_rng(images)
    for expected, draw in (
        (normal, lambda: rng.normal(size=images)),
        (skewed, lambda: 1 - rng.exponential(size=images)),
    ):
        ps = [contrast(draw(), range(images), seed=i).p for i in range(1000)]
        assert np.mean(np.array(ps) <= 0.025) == pytest.approx(expected, abs=0.025)
