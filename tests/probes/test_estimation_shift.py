"""Estimation shift of a head of two BN layers whose errors are planted."""

import math

import pytest
import torch
from torch import nn

from bn_detect import NormalizationBatch
from bn_detect.probes import estimation_shift
from bn_detect.probes.probing import probing

from .toy import CHANNELS, batches, detector

PER_IMAGE = NormalizationBatch("images")


class TwoLayers(nn.Module):
    """BatchNorm after BatchNorm: the second one's input in training has mean 0 and variance 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(CHANNELS, eps=1e-12)
        self.second = nn.BatchNorm2d(CHANNELS, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).mean((2, 3))


@pytest.fixture
def model():
    """A detector whose first layer has the exact statistics of the RoIs below."""
    model = detector(classes=4)
    model.roi_heads.box_head = TwoLayers()
    predictor = model.roi_heads.box_predictor
    predictor.cls_score, predictor.bbox_pred = nn.Linear(CHANNELS, 5), nn.Linear(CHANNELS, 16)
    model.double()
    with probing(model, PER_IMAGE, 0) as (head, _):
        (rois,) = head.sample(DATA[0])
        flat = rois.features.transpose(0, 1).flatten(1)
    layer = model.roi_heads.box_head.first
    layer.running_mean.copy_(flat.mean(1))
    layer.running_var.copy_(flat.var(1, correction=0))
    return model


DATA = batches(1, 4, 0, correlation=0.0, own_evidence=0.5)


def shifts(model) -> list[tuple[float, ...]]:
    report = estimation_shift(model, DATA, 1, partition=PER_IMAGE)
    names = [layer.name.rsplit(".", 1)[1] for layer in report.layers]
    assert names == ["first", "second"] and "second" in str(report)
    return [(s.mean, s.deviation, s.mean_alone, s.deviation_alone) for s in report.layers]


def test_right_statistics_do_not_shift(model):
    assert shifts(model) == [pytest.approx((0, 0, 0, 0), abs=1e-6)] * 2


def test_an_error_of_the_mean_is_handed_on(model):
    layer = model.roi_heads.box_head.first
    layer.running_mean += 0.3 * layer.running_var.sqrt()
    first, second = shifts(model)
    assert first == pytest.approx((0.3, 0, 0.3, 0), abs=1e-6)
    assert second == pytest.approx((0.3, 0, 0, 0), abs=1e-6)


def test_an_error_of_the_deviation_is_handed_on(model):
    model.roi_heads.box_head.first.running_var *= 4
    first, second = shifts(model)
    assert first == pytest.approx((0, math.log(2), 0, math.log(2)), abs=1e-6)
    assert second == pytest.approx((0, math.log(2), 0, 0), abs=1e-6)


def test_a_head_without_population_statistics_has_no_shift():
    assert estimation_shift(detector("GN"), DATA, 1).layers == ()
