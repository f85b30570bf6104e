"""Cross-RoI Jacobian, on cases with a known answer."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from bn_detect import NormalizationBatch
from bn_detect.probes import Interval, cross_roi_jacobian

from .toy import ROIS, batch_reader, batches, detector

IMAGES = 4  # of a batch
DATA = batches(3, IMAGES, 0, correlation=1.0, own_evidence=0.5)
# Other RoIs of the image and of other images in a group.
PARTITIONS = [
    (NormalizationBatch("images"), ROIS - 1, 0),
    (NormalizationBatch("worker", virtual_workers=2), ROIS - 1, ROIS),
    (NormalizationBatch("worker"), ROIS - 1, 3 * ROIS),
    (NormalizationBatch("global"), ROIS - 1, 3 * ROIS),
]


@pytest.mark.parametrize(
    ("partition", "same", "other"), PARTITIONS, ids=["1 image", "2 images", "worker", "global"]
)
@pytest.mark.parametrize(("own", "batch"), [(0.0, 1.0), (0.5, 2.0), (1.0, -0.3)])
def test_a_head_that_reads_the_batch_mean(partition, same, other, own, batch):
    """d z / d (own mean) = own + batch / n, and batch / n for every other RoI of the group."""
    report = cross_roi_jacobian(batch_reader(own, batch), DATA, 3, partition=partition)
    n = 1 + same + other
    itself, each = (own + batch / n) ** 2, (batch / n) ** 2
    total = itself + (n - 1) * each
    for found, expected in (
        (report.itself, itself),
        (report.same_image, same * each),
        (report.other_images, other * each),
    ):
        assert found.mean == pytest.approx(expected / total, rel=1e-9)
        assert found.high - found.low < 1e-9
    assert report.rois == 3 * 16


def test_shuffled_groups_hold_rois_of_all_images():
    shuffled = NormalizationBatch("shuffled", virtual_workers=IMAGES)
    report = cross_roi_jacobian(batch_reader(0.0, 1.0), DATA, 3, partition=shuffled)
    # Of 11 companions, 11 / 47 are of the same image on average.
    assert report.itself.mean == pytest.approx(1 / ROIS)
    expected = (ROIS - 1) / ROIS * (ROIS - 1) / (IMAGES * ROIS - 1)
    assert report.same_image.mean == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("partition", [None, NormalizationBatch("images")])
@pytest.mark.parametrize("norm", ["GN", ""])
def test_without_batch_statistics_all_of_it_is_on_the_roi_itself(norm, partition):
    report = cross_roi_jacobian(detector(norm), DATA, 3, partition=partition)
    assert report.itself == Interval(1.0, 1.0, 1.0)
    assert report.same_image == report.other_images == Interval(0.0, 0.0, 0.0)
    assert report.rois == 48


def test_batchnorm_spreads_the_gradient(correlated):
    data = batches(3, 8, 0, correlation=1.0, own_evidence=0.5)
    found = {name: cross_roi_jacobian(model, data, 3) for name, model in correlated.items()}
    assert found["1 image"].same_image.low > 0.05 and found["1 image"].other_images.high == 0
    assert found["1 image"].same_image.low > found["2 images"].same_image.high
    for name in ("shuffled", "global"):
        assert found[name].same_image.high < 0.03
        assert found[name].other_images.mean > 4 * found[name].same_image.mean
    for report in found.values():
        shares = (report.itself, report.same_image, report.other_images)
        assert sum(share.mean for share in shares) == pytest.approx(1)


def test_a_logit_without_gradient_is_not_counted():
    model = detector()
    nn.init.zeros_(model.roi_heads.box_predictor.cls_score.weight)
    report = cross_roi_jacobian(model, DATA, 1)
    assert report.rois == report.images == 0 and math.isnan(report.itself.mean)


def test_seeds_and_json():
    reports = [cross_roi_jacobian(detector(), DATA, 3, rois_per_batch=5, seed=s) for s in (0, 0, 1)]
    assert reports[0] == reports[1] != reports[2]
    assert reports[0].rois == 15
    assert json.loads(json.dumps(dataclasses.asdict(reports[0])))["itself"]["mean"] > 0.5
    assert "share, 15 RoIs" in str(reports[0])


def test_mistakes():
    with pytest.raises(ValueError, match="rois_per_batch is 0"):
        cross_roi_jacobian(detector(), DATA, 1, rois_per_batch=0)
    with pytest.raises(ValueError, match="num_batches is 0; it must be at least 1"):
        cross_roi_jacobian(detector(), DATA, 0)
    assert torch.is_grad_enabled()
