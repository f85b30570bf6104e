"""Companion swap, on cases with a known answer."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bn_detect import NormalizationBatch
from bn_detect.layers import RoIBatchNorm2d, RoILayout
from bn_detect.probes import Interval, SwapReport, companion_swap

from ..toy import GRID, OBJECTS, ROIS, SIZE, batch_reader, batches, detector, image, train

ZERO = Interval(0.0, 0.0, 0.0)
IMAGES = 4  # of a batch
PARTITIONS = [
    (NormalizationBatch("images"), ROIS),
    (NormalizationBatch("images", images_per_group=2), 2 * ROIS),
    (NormalizationBatch("worker", virtual_workers=2), 2 * ROIS),
    (NormalizationBatch("worker"), IMAGES * ROIS),
    (NormalizationBatch("shuffled", virtual_workers=4), ROIS),
    (NormalizationBatch("global"), IMAGES * ROIS),
]


def alternating_batches(count: int) -> list[list[dict]]:
    """All RoIs of a batch are painted with 1, all of the next with -1, and so on."""
    classes = torch.zeros(OBJECTS, dtype=torch.int64)
    return [
        [image(torch.full((GRID**2, 6), (-1.0) ** i), classes) for _ in range(IMAGES)]
        for i in range(count)
    ]


def near(interval: Interval, value: float | Tensor) -> None:
    assert interval.mean == pytest.approx(float(value), abs=1e-12)
    assert interval.low - 1e-12 <= interval.mean <= interval.high + 1e-12


@pytest.mark.parametrize(("partition", "group"), PARTITIONS, ids=lambda x: getattr(x, "batch", x))
@pytest.mark.parametrize(("own", "batch"), [(0.0, 1.0), (0.3, 0.2), (-0.1, 0.5)])
def test_a_head_that_reads_the_batch_mean(partition, group, own, batch):
    """z = own * v + batch * mean; the RoI has v in {1, -1}, as its companions, and foreign ones
    -v."""
    report = companion_swap(
        batch_reader(own, batch),
        alternating_batches(4),
        4,
        partition=partition,
        targets_per_image=3,
    )
    v = torch.tensor([1.0, -1.0], dtype=torch.float64)
    z = (own + batch) * v
    swapped = own * v + batch * (v - (group - 1) * v) / group
    foreground = F.softplus(-2 * swapped) - F.softplus(-2 * z)
    background = F.softplus(2 * swapped) - F.softplus(2 * z)
    share = OBJECTS / ROIS
    near(report.classification_foreground.own, F.softplus(-2 * z).mean())
    near(report.classification_foreground.change, foreground.mean())
    near(report.classification_background.change, background.mean())
    near(report.classification.change, share * foreground.mean() + (1 - share) * background.mean())
    near(report.box.change, 4 * (swapped.abs() - z.abs()).mean())
    near(report.flip_rate, float((swapped.sign() != z.sign()).double().mean()))
    for swap in (report.classification, report.box):
        near(swap.null, 0.0)  # the images' own RoIs are all alike
    assert report.null_flip_rate.mean == report.null_flip_rate.low == 0
    assert (report.images, report.rois, report.filled) == (4 * IMAGES, 3 * 4 * IMAGES, 0)


@pytest.mark.parametrize("partition", [None, NormalizationBatch("images")])
@pytest.mark.parametrize("norm", ["GN", "", "LN"])
def test_without_batch_statistics_it_is_exactly_0(norm, partition):
    model = detector(norm)
    train(model, 5, correlation=1.0, own_evidence=0.5)
    report = companion_swap(
        model, batches(3, 4, 0, correlation=1.0, own_evidence=0.5), 3, partition=partition
    )
    assert_exactly_0(report)
    assert report.flips == ()


def assert_exactly_0(report: SwapReport) -> None:
    assert report.rois > 0 and report.classification.own.mean > 0
    for swap in (
        report.classification,
        report.classification_foreground,
        report.classification_background,
        report.box,
    ):
        assert swap.change == swap.null == ZERO
    for row in report.swaps.values():
        if row.rois:
            assert row.change == row.null == ZERO
        assert row.rois + row.not_measured == report.rois
    rates = [report.flip_rate, report.null_flip_rate]
    rates += [r for s in report.swaps.values() if s.rois for r in (s.flip_rate, s.null_flip_rate)]
    assert all(rate.mean == rate.low == 0 < rate.high for rate in rates)
    assert report.verdict.startswith("reads neither labels nor the image's statistics")


class HiddenDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=self.training)


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), HiddenDropout()], ids=["module", "hidden"])
def test_dropout_is_no_leakage(dropout):
    model = detector("GN")
    model.roi_heads.box_head = nn.Sequential(model.roi_heads.box_head, dropout)
    assert_exactly_0(companion_swap(model, batches(2, 4, 0, correlation=1.0, own_evidence=0.5), 2))


def swap(model: nn.Module, correlation: float, **kwargs) -> SwapReport:
    images = batches(6, 8, 7, correlation=correlation, own_evidence=0.5)
    return companion_swap(model, images, 6, **kwargs)


def test_trained_heads_leak_in_the_order_of_their_batches(correlated):
    found = {name: swap(model, 1.0) for name, model in correlated.items()}
    change = {name: report.classification.change for name, report in found.items()}
    assert change["1 image"].low > change["2 images"].high > change["2 images"].low > 0.02
    assert found["1 image"].flip_rate.low > 0.2
    assert found["1 image"].classification_foreground.change.mean > change["1 image"].mean
    for name in ("shuffled", "global"):
        # Companions of a RoI's own image may even do a little harm, which is no leakage.
        assert change[name].mean > -0.02 and change[name].low <= 0 and change[name].high < 0.02
        assert found[name].flip_rate.mean < 0.02
    for report in found.values():
        assert abs(report.classification.null.mean) < 0.02
        assert report.null_flip_rate.mean < 0.05


def test_the_partition_can_be_given(correlated):
    """None is the head's own; under another one the same head reads other companions."""
    model = correlated["1 image"]
    found = [
        swap(model, 1.0, partition=partition).classification.change
        for partition in (None, NormalizationBatch("images"), NormalizationBatch("global"))
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("batch", ["images", "global"])
def test_own_evidence_only_is_0_within_the_interval(batch):
    model = train(detector(batch=batch), 200, correlation=0.0, own_evidence=0.5)
    change = swap(model, 0.0).classification.change
    assert change.low <= 0 <= change.high
    assert max(-change.low, change.high) < 0.03


def test_targets_stand_for_all_rois():
    data = batches(2, 4, 0, correlation=1.0, own_evidence=0.5)
    for images in data:  # one object left in the first image, none in the last
        images[0]["instances"] = images[0]["instances"][:1]
        images[-1]["instances"] = images[-1]["instances"][:0]
    for per_image in (1, 4, 100):
        columns = companion_swap(detector(), data, 2, targets_per_image=per_image).per_roi
        image, label, weight = (np.array(columns[k]) for k in ("image", "label", "weight"))
        for number in range(8):
            of_image, foreground = image == number, (image == number) & (label < 4)
            assert of_image.sum() == min(per_image, ROIS)
            if per_image >= 4:
                assert weight[of_image].sum() == pytest.approx(ROIS)
                objects = {0: 1, 3: 0}.get(number % 4, OBJECTS)
                assert foreground.sum() == min(objects, -(-per_image // 2))
                assert weight[foreground].sum() == pytest.approx(objects)


def test_every_roi_can_be_looked_at(correlated):
    report = swap(correlated["1 image"], 1.0)
    columns = {name: np.array(column) for name, column in report.per_roi.items()}
    assert {len(column) for column in columns.values()} == {report.rois}
    weight, foreground = columns["weight"], columns["label"] < 4
    change = columns["swapped_classification"] - columns["own_classification"]
    flips = columns["swapped_prediction"] != columns["own_prediction"]
    box = columns["resampled_box"] - columns["own_box"]
    for values, interval in (
        (np.average(change, weights=weight), report.classification.change),
        (np.average(change[foreground]), report.classification_foreground.change),
        (np.average(flips, weights=weight), report.flip_rate),
        (np.average(box[foreground]), report.box.null),
    ):
        assert values == pytest.approx(interval.mean, abs=1e-5)


def test_flips_can_be_drawn(correlated):
    data = batches(8, 8, 99, correlation=1.0, own_evidence=0.5)
    report = companion_swap(correlated["1 image"], data, 8)
    where = {x["file_name"]: i for i, images in enumerate(data) for x in images}
    assert len(report.flips) == len({flip.file_name for flip in report.flips}) == 8
    for flip in report.flips:
        assert flip.own_prediction != flip.swapped_prediction
        assert 0 <= flip.label < 4  # foreground first
        x0, y0, x1, y1 = flip.box
        assert (x1 - x0, y1 - y0) == (3 * SIZE / GRID, 2 * SIZE / GRID)  # of the original image
        assert 0 <= x0 < x1 <= 3 * SIZE and 0 <= y0 < y1 <= 2 * SIZE
        assert {name for name, _ in flip.own_companions} == {flip.file_name}
        assert flip.box not in [box for _, box in flip.own_companions]
        ((foreign, *others),) = [sorted({name for name, _ in flip.foreign_companions})]
        assert not others and where[foreign] == (where[flip.file_name] + 1) % 8
        assert len(flip.own_companions) == len(flip.foreign_companions) == ROIS - 1


def test_same_seed_same_report(correlated):
    data = batches(2, 8, 99, correlation=1.0, own_evidence=0.5)
    reports = [companion_swap(correlated["1 image"], data, 2, seed=seed) for seed in (0, 0, 1)]
    first, again, other = map(repr, reports)  # by ==, NaN differs from itself
    assert first == again != other
    text = json.dumps(dataclasses.asdict(reports[0]))
    assert json.loads(text)["classification"]["change"]["mean"] > 0.3
    assert f"{reports[0].classification.change}" in str(reports[0])


def test_batches_of_unequal_sizes_and_images_without_objects():
    data = batches(3, 4, 0, correlation=1.0, own_evidence=0.5)
    data[1] = data[1][:1]
    for x in data[2]:
        x["instances"] = x["instances"][:0]
    report = companion_swap(detector(batch="images"), data, 3)
    # The third batch has no foreground that could replace the second's.
    assert set(report.per_roi["image"]) == {0, 1, 2, 3, 5, 6, 7, 8}
    alone = companion_swap(detector(batch="images"), [data[2]] * 2, 2)
    assert alone.images == 8 and math.isnan(alone.box.change.mean)
    assert " - " in str(alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_batches": 1}, "num_batches is 1; it must be at least 2"),
        ({"foreign_batches": 0}, "foreign_batches is 0; it must be at least 1"),
        ({"num_batches": 4}, "ended after 3 of num_batches = 4"),
        ({"targets_per_image": 0}, "targets_per_image is 0"),
        ({"partition": NormalizationBatch(virtual_workers=3)}, "VIRTUAL_WORKERS is 3, .* the 4"),
        ({"loader": [[{"image": torch.zeros(6, 16, 16)}]] * 3}, "ground truth: .* dicts with 'im"),
        ({"loader": [torch.zeros(3)] * 3}, "lists of dicts .* got Tensor"),
        ({"model": nn.Linear(1, 1)}, "cannot probe Linear with roi_heads NoneType; known are"),
    ],
)
def test_mistakes(arguments, message):
    usual = {
        "model": detector(),
        "loader": batches(3, 4, 0, correlation=1.0, own_evidence=0.5),
        "num_batches": 3,
    }
    with pytest.raises(ValueError, match=message):
        companion_swap(**usual | arguments)


def test_layers_that_disagree_need_a_partition():
    model = detector(batch="images")
    data = batches(2, 4, 0, correlation=1.0, own_evidence=0.5)
    other = RoIBatchNorm2d(16, layout=RoILayout(NormalizationBatch("global")))
    model.roi_heads.box_head = nn.Sequential(model.roi_heads.box_head, other)
    with pytest.raises(ValueError, match=r"unequal .*'images'.*'global'.*pass partition="):
        companion_swap(model, data, 2)
    report = companion_swap(model, data, 2, partition=NormalizationBatch("images"))
    assert report.classification.change != ZERO
