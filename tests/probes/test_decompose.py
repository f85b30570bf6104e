"""Decomposition, against the losses of training and inference."""

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage

from bn_detect import NormalizationBatch, update_population_stats
from bn_detect.probes import decomposition

from .toy import CHANNELS, GRID, ROIS, batches, detector, image

DIALS = {"correlation": 1.0, "own_evidence": 0.5}
TRAIN, VAL = batches(6, 8, 1, **DIALS), batches(6, 8, 2, **DIALS)
POPULATION = batches(10, 8, 3, **DIALS)


def decompose(model, **kwargs) -> dict:
    report = decomposition(
        model,
        {"train": TRAIN, "val": VAL},
        6,
        population_loader=POPULATION,
        population_batches=10,
        **kwargs,
    )
    return {(row.split, row.statistics): row for row in report.rows}


@pytest.mark.parametrize("norm", ["GN", ""])
def test_without_batchnorm_statistics_do_not_matter(norm):
    rows = decompose(detector(norm))
    for split in ("train", "val"):
        first, *others = (rows[split, kind] for kind in ("minibatch", "population", "precise"))
        for other in others:
            assert other.loss == pytest.approx(first.loss, rel=1e-5)
            assert other.accuracy == first.accuracy


def test_a_leaking_head_is_inconsistent(correlated):
    rows = decompose(correlated["1 image"])
    assert rows["val", "precise"].loss > rows["val", "minibatch"].loss + 0.2
    assert rows["val", "precise"].foreground_accuracy < (
        rows["val", "minibatch"].foreground_accuracy - 0.2
    )
    clean = decompose(correlated["shuffled"])
    assert abs(clean["val", "precise"].loss - clean["val", "minibatch"].loss) < 0.03
    for split in ("train", "val"):
        assert rows[split, "precise"].loss == pytest.approx(rows[split, "population"].loss, abs=0.2)


def every_cell(images: list[dict]) -> list[dict]:
    """With so many objects that all RoIs are sampled, and nothing is left to chance."""
    g = torch.Generator().manual_seed(0)
    return [image(torch.randn(GRID**2, CHANNELS, generator=g), torch.arange(6) % 4) for _ in images]


def test_rows_are_the_losses_of_training_and_inference():
    data = [every_cell(range(8))]
    model = detector(batch="images")
    model.roi_heads.batch_size_per_image = GRID**2
    for _ in range(3):  # a moving average that is not the population
        with EventStorage():
            model(data[0])
    found = decomposition(model, {"a": data}, 1, population_loader=data, population_batches=1).rows
    with EventStorage(), torch.no_grad():
        training = copy.deepcopy(model)(data[0])["loss_cls"].item()
        precise = copy.deepcopy(model)
        update_population_stats(precise, data, 1, progress=False)
        expected = [training, *(_loss_at_inference(m, data[0]) for m in (model, precise))]
    assert [row.loss for row in found] == pytest.approx(expected, rel=1e-5)
    assert len({round(loss, 4) for loss in expected}) == 3


def test_objects_are_told_apart_without_background():
    data = [every_cell(range(8))]
    model = detector(batch="images")
    model.roi_heads.batch_size_per_image = GRID**2
    with torch.no_grad():  # every RoI is said to be background
        model.roi_heads.box_predictor.cls_score.bias[4] += 50
    found = decomposition(model, {"a": data}, 1, population_loader=data, population_batches=1).rows
    logits, labels = _at_inference(model, data[0])
    objects = labels < 4  # the toy's proposals on objects are their boxes
    right = (logits[objects, :4].argmax(1) == labels[objects]).double().mean().item()
    assert found[1].statistics == "population" and found[1].foreground_accuracy == 0
    assert found[1].object_accuracy == pytest.approx(right) and 0 < right < 1
    expected = F.cross_entropy(logits[objects], labels[objects]).item()
    assert found[1].object_loss == pytest.approx(expected, rel=1e-5) and expected > 40


def _loss_at_inference(model, batch: list[dict]) -> float:
    return F.cross_entropy(*_at_inference(model, batch)).item()


@torch.no_grad()
def _at_inference(model, batch: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    heads = model.eval().roi_heads
    features = model.backbone(model.preprocess_image(batch).tensor)["p0"]
    pooled = heads.box_pooler([features], [x["proposals"].proposal_boxes for x in batch])
    labels = torch.full((len(batch), GRID**2), 4)
    for i, x in enumerate(batch):
        labels[i, : len(x["instances"])] = x["instances"].gt_classes
    return heads.box_predictor(heads.box_head(pooled))[0], labels.flatten()


def test_ap_comes_from_the_caller():
    asked = []

    def evaluate(kind: str) -> dict:
        asked.append(kind)
        return {"val": {"AP": float(len(kind)), "AP50": 50.0, "APs": 0.0}}

    rows = decompose(detector(), evaluate=evaluate)
    assert sorted(asked) == ["minibatch", "population", "precise"]
    assert rows["val", "population"].ap == len("population") and rows["val", "precise"].ap == 7.0
    assert rows["val", "minibatch"].ap50 == 50.0 and rows["train", "population"].ap is None


def test_json_and_table():
    report = decomposition(
        detector(),
        {"train": TRAIN},
        2,
        population_loader=POPULATION,
        population_batches=2,
        partition=NormalizationBatch("global"),
    )
    rows = json.loads(json.dumps(dataclasses.asdict(report)))["rows"]
    assert [row["statistics"] for row in rows] == ["minibatch", "population", "precise"]
    assert 0 <= rows[0]["accuracy"] <= 1 and ROIS and "loss (nats)" in str(report)


def test_mistakes():
    with pytest.raises(ValueError, match="ended after 6 of num_batches = 7"):
        decomposition(
            detector(), {"a": TRAIN}, 7, population_loader=POPULATION, population_batches=1
        )
    with pytest.raises(ValueError, match="ended after 10 of num_iters = 11"):
        decomposition(
            detector(), {"a": TRAIN}, 1, population_loader=POPULATION, population_batches=11
        )
