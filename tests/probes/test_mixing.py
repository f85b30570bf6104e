"""Mixed statistics: the two ends against the decomposition, between them against the formula."""

import pytest
import torch
import torch.nn.functional as F

from bn_detect import NormalizationBatch
from bn_detect.probes import decomposition, mixed_statistics
from bn_detect.probes.mixing import ALPHAS, _mixed
from bn_detect.probes.probing import on_population_statistics, probing

from .toy import batches, detector

PER_IMAGE = NormalizationBatch("images")


@pytest.fixture(scope="module")
def data() -> dict[str, list]:
    dials = {"correlation": 0.5, "own_evidence": 0.5}
    return {"train": batches(2, 4, 0, **dials), "val": batches(2, 4, 1, **dials)}


def strayed(factor: float = 1.0):
    """A detector whose running statistics are not those of its data."""
    model = detector(batch="images").double()
    norm = model.roi_heads.box_head.conv1.norm
    norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    norm.running_var.mul_(factor)
    return model


def test_the_ends_are_population_and_minibatch_statistics(data):
    model = strayed()
    mixed = mixed_statistics(model, data, 2, partition=PER_IMAGE)
    known = decomposition(
        model,
        data,
        2,
        partition=PER_IMAGE,
        population_loader=data["train"],
        population_batches=1,
    )
    losses = {(r.split, r.alpha): (r.loss.mean, r.accuracy) for r in mixed.rows}
    for row in known.rows:
        if row.statistics != "precise":
            alpha = 1.0 if row.statistics == "minibatch" else 0.0
            assert losses[row.split, alpha] == pytest.approx((row.loss, row.accuracy), rel=1e-6)


def test_between_them_it_is_the_formula(data):
    model = strayed()
    conv, fc = model.roi_heads.box_head.conv1, model.roi_heads.box_head.fc1
    with probing(model, PER_IMAGE, 0) as (head, groups), torch.no_grad():
        (rois,) = head.sample(data["val"][0])
        features = rois.features[groups(rois, 0)[1]]
        with on_population_statistics(head), _mixed(head, 0.25):
            found = head(features).logits
        x = F.conv2d(features, conv.weight, conv.bias, padding=1)
        flat = x.transpose(0, 1).flatten(1)
        mean = 0.25 * flat.mean(1) + 0.75 * conv.norm.running_mean
        var = 0.25 * flat.var(1, correction=0) + 0.75 * conv.norm.running_var
        x = (x - mean[:, None, None]) / (var[:, None, None] + conv.norm.eps).sqrt()
        x = F.relu(x * conv.norm.weight[:, None, None] + conv.norm.bias[:, None, None])
        expected = model.roi_heads.box_predictor(F.relu(fc(x.flatten(1))))[0]
    torch.testing.assert_close(found, expected)


def test_useless_statistics_of_either_kind_are_not_used(data):
    report = mixed_statistics(strayed(1e-4), data, 2, partition=PER_IMAGE)
    population, minibatch = (report.rows[i].loss.mean for i in (-len(ALPHAS), -1))
    assert report.best == 1.0
    assert report.gain.mean == pytest.approx(population - minibatch) and report.gain.mean > 0
    assert [r.alpha for r in report.rows] == [*ALPHAS] * 2 and "alpha 1.0" in str(report)
    no_batch = mixed_statistics(detector("GN"), data, 2)
    assert {r.loss.mean for r in no_batch.rows if r.split == "val"} == {no_batch.rows[-1].loss.mean}
    assert no_batch.best == 0.0 and no_batch.gain.mean == 0
