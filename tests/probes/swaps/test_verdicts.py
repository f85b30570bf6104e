"""Verdicts over seeds, images and arms, against Student's test and the bootstrap of each alone."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from bn_detect.probes.intervals import contrast
from bn_detect.probes.swaps.verdicts import (
    NEGLIGIBLE,
    QUESTIONS,
    Answer,
    answers,
    answers_of,
    phrase,
    predicate,
)

IMAGES = 30


def report(labels: np.ndarray) -> dict:
    """A report with one RoI an image, whose label leakage is given and other differences are 0."""
    zero = [0.0] * len(labels)
    names = {"same_class", "resampled_class", "foreground"}
    return {
        "per_roi": {
            "image": list(range(len(labels))),
            "weight": [1.0] * len(labels),
            "any_class_classification": labels.tolist(),
            **{f"{name}_classification": zero for name in names},
        }
    }


def label_leakage(*arrays: np.ndarray) -> Answer:
    return answers({"a": [report(array) for array in arrays]})["a"][0]


def test_one_seed_is_tested_over_images():
    values = np.random.default_rng(0).normal(0.3, 1.0, IMAGES)
    found, expected = label_leakage(values), contrast(values, range(IMAGES))
    assert found.over_seeds is None and found.p == expected.p
    ends = found.over_images.low, found.over_images.high
    assert ends == pytest.approx((expected.low, expected.high))
    assert (found.rois, found.images, found.seeds) == (IMAGES, IMAGES, 1)


def test_where_images_agree_it_is_students_test_over_seeds():
    means = np.array([0.2, 0.5, 0.3])
    found = label_leakage(*(np.full(IMAGES, mean) for mean in means))
    expected = stats.ttest_1samp(means, 0, alternative="greater")
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    interval = stats.ttest_1samp(means, 0).confidence_interval()
    assert (found.over_seeds.low, found.over_seeds.high) == pytest.approx(tuple(interval))
    assert found.over_images.low == pytest.approx(found.over_images.high)


def test_where_seeds_agree_it_is_students_test_over_images():
    values = np.random.default_rng(1).normal(0.2, 1.0, IMAGES)
    found = label_leakage(values, values, values)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue, 0.1)
    assert found.rois == 3 * IMAGES and found.images == IMAGES


def study(rng: np.random.Generator, mean: float) -> Answer:
    """Of 4 seeds: seeds, images, and seeds on images all vary."""
    seeds, images = rng.normal(0, 0.05, (4, 1)), rng.normal(0, 0.5, IMAGES)
    return label_leakage(*(mean + seeds + images + rng.normal(0, 0.3, (4, IMAGES))))


def test_how_often_it_finds_nothing_and_something():
    rng = np.random.default_rng(2)
    of_nothing = [study(rng, 0.0) for _ in range(300)]
    assert np.mean([a.p < 0.025 for a in of_nothing]) < 0.05
    detectable = float(np.median([a.detectable for a in of_nothing]))
    assert 0.7 < np.mean([study(rng, detectable).read for _ in range(150)]) < 0.95


def test_holm_spans_the_arms():
    rng = np.random.default_rng(3)
    weak = contrast(values := rng.normal(0.4, 1.0, IMAGES), range(IMAGES))
    assert 0.025 / 30 < weak.p < 0.025
    assert answers({"weak": [report(values)]})["weak"][0].read == (weak.p < 0.025 / 3)
    # 9 more arms about which nothing is to be found.
    arms = {str(i): [report(np.zeros(IMAGES))] for i in range(9)} | {"weak": [report(values)]}
    found = answers(arms)
    assert not found["weak"][0].read and found["weak"][0].open
    assert found["weak"][0].detectable > answers({"a": [report(values)]})["a"][0].detectable
    assert not any(a.read for arm in found.values() for a in arm)


def test_what_was_not_measured_is_not_answered():
    without = report(np.ones(IMAGES))
    without["per_roi"]["same_class_classification"] = [None] * IMAGES
    of_nothing, image, number = answers({"a": [without, {}]})["a"]
    assert of_nothing.seeds == of_nothing.rois == 0 and math.isnan(of_nothing.p)
    assert not of_nothing.read and image.seeds == 0 and number.seeds == 1
    assert [a.question for a in (of_nothing, image, number)] == list(QUESTIONS)


def test_a_verdict_denies_nothing_that_was_not_measured():
    labels, image, number = (question.thing for question in QUESTIONS)
    assert phrase([]) == f"reads neither {labels} nor {image}"
    assert phrase([], [number]) == f"reads neither {labels} nor {image} (not measured: {number})"
    assert phrase([], [image]) == f"does not read {labels} (not measured: {image})"
    assert phrase([image], [labels]) == f"reads {image} (not measured: {labels})"
    assert phrase([], [], [labels]) == f"reads {labels}, but not after correction"
    both = phrase([image], [], [labels])
    assert both == f"reads {image} (and {labels}, but not after correction)"
    said = phrase([], [labels, image, number])
    assert "cannot be judged" in said and "read" not in said and "20 images" in said


@pytest.mark.parametrize(("mean", "named"), [(0.5, False), (1.5, True)])
def test_a_negligible_difference_is_not_named_however_sure(mean, named):
    values = np.full(IMAGES, mean * NEGLIGIBLE)
    found = label_leakage(values, values)
    assert found.p < 1e-6 and found.read == named and not found.open
    assert found.detectable == NEGLIGIBLE
    for p in (0.001, 0.02, 0.03):  # seen by its own test, or not
        undecided = dataclasses.replace(found, p=p, read=False)
        assert undecided.open == (named and p < 0.025)


def with_null(labels: float, image: float, cost: float) -> dict:
    """A report of a head that reads both to an extent, where matching classes costs by itself."""
    made = report(np.full(IMAGES, labels + image))
    made["per_roi"]["same_class_classification"] = [image + cost] * IMAGES
    return made


@pytest.mark.parametrize(
    ("labels", "image", "cost", "read"),
    [
        (0.0, 0.0, 0.03, set()),  # the shuffled heads of blood cells
        (0.0, 0.3, 0.03, {"the image's statistics"}),
        (0.3, 0.0, 0.0, {"labels"}),
        (0.3, 0.3, 0.03, {"labels", "the image's statistics"}),
    ],
)
def test_the_cost_of_matching_classes_is_not_the_image(labels, image, cost, read):
    found = answers_of(with_null(labels, image, cost))
    assert {a.question.thing for a in found if a.read} == read
    assert found[1].mean == pytest.approx(image + cost)  # it is shown all the same
    seeds = answers({"a": [with_null(labels, image, cost)] * 2})["a"]
    assert [a.read for a in seeds] == [a.read for a in found]
    assert all(thing in predicate(found) for thing in read)


def test_the_control_must_be_measured():
    made = with_null(0.0, 0.3, 0.0)
    made["per_roi"]["any_class_classification"][5:] = [None] * (IMAGES - 5)
    labels, image, _ = answers_of(made)
    assert math.isnan(labels.p) and math.isnan(image.p) and image.rois == image.asked == IMAGES
    assert labels.rois == 5 and labels.asked == IMAGES
