"""What a head reads: heads whose answer is known, exactly or by what they were trained on."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from bn_detect import NormalizationBatch
from bn_detect.probes import Interval, SwapReport, companion_swap

from .. import toy
from ..toy import CHANNELS, GRID, OBJECTS, ROIS, detector, image, train

PER_IMAGE = NormalizationBatch("images")
ZERO = (0.0, 0.0, 0.0)
NUMBERS = "(not measured: the number of foreground RoIs)"  # all images have as many objects


def scenes(values: list[list[float]], classes: list[Tensor], background: float) -> list[list[dict]]:
    """Batches of images: the value of the objects of each, which are of its classes."""
    made = []
    for batch in values:
        images = []
        for value, objects in zip(batch, classes, strict=True):
            cells = torch.full((GRID**2, CHANNELS), background + value)
            images.append(image(cells, objects))
        made.append(images)
    return made


def about(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high


def test_a_head_that_reads_the_image_alone():
    """Every RoI of a batch has one value; the next batch has the opposite, and the same class."""
    objects = torch.zeros(OBJECTS, dtype=torch.int64)
    data = scenes([[v] * 4 for v in [1.0, -1.0] * 3], [objects] * 4, 0.0)
    report = companion_swap(
        toy.batch_reader(-0.1, 0.5), data, 6, partition=PER_IMAGE, foreign_batches=1
    )
    assert about(report.label_leakage.all) == ZERO and report.label_leakage.all.rois == 96
    for name in ("same_class", "any_class"):
        assert report.swaps[name].change == report.classification.change
        assert report.swaps[name].not_measured == 0
    assert report.swaps["other_class"].rois == 0  # there is no other class
    assert report.image_dependence.all.mean == report.classification.change.mean > 0
    assert report.verdict == f"reads the image's statistics {NUMBERS}"


def class_reader() -> GeneralizedRCNN:
    """Two classes, logits 4z and -4z, and background 0; z is the mean of all RoIs."""
    model = detector(classes=2)
    model.roi_heads.box_head = toy.ReadsTheBatch(0.0, 1.0)
    predictor = model.roi_heads.box_predictor
    predictor.cls_score = nn.Linear(1, 3, bias=False)
    predictor.bbox_pred = nn.Linear(1, 8, bias=False)
    with torch.no_grad():
        predictor.cls_score.weight.copy_(torch.tensor([[4.0], [-4.0], [0.0]]))
    return model.double()


def class_images() -> list[list[dict]]:
    """Images of one class each; objects have the value 1 or -1 by their class, background has 0."""
    made = []
    for _ in range(6):
        images = []
        for label in (0, 1, 0, 1):
            cells = torch.zeros(GRID**2, CHANNELS)
            cells[:OBJECTS] = 1.0 - 2 * label
            images.append(image(cells, torch.full((OBJECTS,), label)))
        made.append(images)
    return made


def test_a_head_that_reads_labels_alone():
    report = companion_swap(class_reader(), class_images(), 6, partition=PER_IMAGE)
    assert about(report.image_dependence.all) == ZERO and report.image_dependence.all.rois == 96
    assert report.swaps["same_class"].change == Interval(*ZERO)
    # The mean of the group turns round, but for the object itself.
    own, other = OBJECTS / ROIS, -(OBJECTS - 2) / ROIS

    def loss(mean: float) -> Tensor:
        return F.cross_entropy(torch.tensor([[4 * mean, -4 * mean, 0.0]]), torch.tensor([0]))

    expected = float(loss(other) - loss(own))
    columns = report.per_roi
    foreground = [i for i, label in enumerate(columns["label"]) if label < 2]
    for i in foreground:
        change = columns["other_class_classification"][i] - columns["own_classification"][i]
        assert change == pytest.approx(expected, abs=1e-5)
        mixed = columns["any_class_classification"][i] - columns["own_classification"][i]
        assert mixed == pytest.approx(expected, abs=1e-5) or mixed == 0
    assert report.label_leakage.foreground.mean == pytest.approx(
        report.swaps["any_class"].change.mean / 0.5, rel=0.2
    )
    assert report.verdict == f"reads labels {NUMBERS}"
    assert report.swaps["other_class"].flip_rate.low > report.swaps["same_class"].flip_rate.mean


def test_a_head_that_reads_the_number_of_objects():
    """One class; objects have the value 1 and the head adds the mean of the group."""
    data = []
    for numbers in ((6, 4, 2, 1), (1, 2, 4, 6), (3, 5, 3, 5)):
        images = []
        for number in numbers:
            cells = torch.zeros(GRID**2, CHANNELS)
            cells[:number] = 1.0
            images.append(image(cells, torch.zeros(number, dtype=torch.int64)))
        data.append(images)
    report = companion_swap(toy.batch_reader(-0.2, 1.0), data, 3, partition=PER_IMAGE)
    row = report.swaps["foreground"]
    assert row.change.mean != 0 and row.null == Interval(*ZERO)
    assert row.rois > 0 and row.not_measured > 0  # some images have too few objects for it
    assert about(report.label_leakage.all) == about(report.image_dependence.all) == ZERO
    columns = report.per_roi
    changed = [c is not None for c in columns["foreground_classification"]]
    assert sum(changed) == row.rois
    # One class can be matched, as far as there are enough of it.
    assert report.swaps["same_class"].rois > 0


DIALS = {
    "labels": ({"correlation": 1.0, "own_evidence": 0.5}, 200),
    "the image's statistics": ({"correlation": 0.0, "own_evidence": 1.0, "cast": 1.0}, 400),
    "the number of foreground RoIs": (
        {"correlation": 1.0, "own_evidence": 0.0, "numbers": (1, 2, 4, 6)},
        400,
    ),
    "neither": ({"correlation": 0.0, "own_evidence": 0.5}, 200),
}


def trained_report(dials: dict, iterations: int) -> SwapReport:
    model = train(detector(batch="images"), iterations, **dials)
    return companion_swap(model, toy.batches(10, 8, 77, **dials), 10)


@pytest.mark.parametrize("cause", DIALS)
def test_trained_heads(cause):
    report = trained_report(*DIALS[cause])
    read = {
        "labels": report.label_leakage,
        "the image's statistics": report.image_dependence,
        "the number of foreground RoIs": report.foreground_dependence,
    }
    for name, dependence in read.items():
        assert (dependence.all.low > 0.1) == (name == cause), name
        if name != cause and dependence.all.rois:
            assert dependence.all.low < 0.01
    if cause == "neither":
        assert report.verdict == f"reads neither labels nor the image's statistics {NUMBERS}"
    else:
        assert cause in report.verdict
    if cause == "labels":
        assert report.swaps["other_class"].change.low > report.swaps["any_class"].change.mean
        assert report.swaps["other_class"].flip_rate.low > report.swaps["same_class"].flip_rate.high


def test_what_was_not_measured_is_said():
    """Batches that share no class: nothing can be matched, and nothing is filled up."""
    data = [
        [image(torch.randn(GRID**2, CHANNELS), torch.full((OBJECTS,), label)) for _ in range(2)]
        for label in (0, 1, 2)
    ]
    report = companion_swap(detector(batch="images"), data, 3)
    assert report.swaps["same_class"].rois == report.swaps["any_class"].rois == 0
    assert report.swaps["same_class"].not_measured == report.rois == 24
    assert report.swaps["other_class"].rois == 24
    assert math.isnan(report.label_leakage.all.mean)
    assert "cannot be judged" in report.verdict
    assert "not measured: labels, the image's statistics, the number" in report.verdict
    assert " - " in str(report) and report.verdict in str(report)
