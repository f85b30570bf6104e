"""Statistics probe, on images whose statistics tell a known number of bits."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from bn_detect.probes import statistics_probe
from bn_detect.probes.statistics import NUMBER, PRESENCE

from .toy import CHANNELS, CLASSES, GRID, batches, detector, image


def entropy(p: float) -> float:
    """Of an event of that probability, in bits."""
    return float(sum(-q * np.log2(q) for q in (p, 1 - p) if q > 0))


QUARTER = entropy(0.25)


def painted(count: int, images: int, *, tells: str) -> list[list[dict]]:
    """Images whose brightness tells their class, or how many objects they have, or nothing."""
    g = torch.Generator().manual_seed(0)
    data = []
    for i in range(count * images):
        objects, c = 1 + i // 4 % 3, i % CLASSES
        told = {"class": c, "number": objects, "nothing": torch.randint(4, (), generator=g)}[tells]
        cells = 0.2 * torch.randn(GRID**2, CHANNELS, generator=g)
        cells[:, int(told)] += 3
        data.append(image(cells, torch.full((objects,), c)))
    order = torch.randperm(len(data), generator=g).tolist()
    return [[data[j] for j in order[i * images : (i + 1) * images]] for i in range(count)]


def probe(tells: str, batch: str = "images", norm: str = "BN", **kwargs):
    data = painted(15, 8, tells=tells)
    return statistics_probe(detector(norm, batch=batch), data, 15, permutations=5, **kwargs)


def bits(report, label: str):
    (row,) = [row for row in report.layers if row.label == label]
    assert row.name == "roi_heads.box_head.conv1.norm"
    assert row.null_std > 0 and abs(row.null_mean) < 0.1
    return row


@pytest.mark.parametrize(("tells", "other"), [(PRESENCE, NUMBER), (NUMBER, PRESENCE)])
def test_statistics_that_tell_everything_about_one_label(tells, other):
    report = probe({PRESENCE: "class", NUMBER: "number"}[tells])
    row = bits(report, tells)
    there_is = {PRESENCE: QUARTER, NUMBER: np.log2(3)}[tells]
    assert row.entropy == pytest.approx(there_is)
    assert 0.85 * there_is < row.bits < there_is - row.null_mean
    row = bits(report, other)
    assert abs(row.bits) < 4 * row.null_std
    assert report.images == 120


def test_statistics_that_tell_nothing_are_within_the_null():
    report = probe("nothing")
    for label in (PRESENCE, NUMBER):
        row = bits(report, label)
        assert abs(row.bits) < 4 * row.null_std and row.bits < 0.05


def test_statistics_of_a_larger_group_tell_its_composition():
    """That k of a group's 8 images show a class tells H - h(k / 8) bits about each of them."""
    row = bits(probe("class", "global"), PRESENCE)
    counts = [
        sum(int(x["instances"].gt_classes[0]) == c for x in images)
        for images in painted(15, 8, tells="class")
        for c in range(CLASSES)
    ]
    told = QUARTER - np.mean([entropy(k / 8) for k in counts])
    assert row.bits == pytest.approx(told, abs=0.05) and 0.05 < told < 0.15


@pytest.mark.parametrize("norm", ["GN", ""])
def test_a_head_without_batchnorm_has_no_statistics(norm):
    assert probe("class", norm=norm).layers == ()


def test_all_layers_together():
    """One layer is all layers; two of which one tells nothing tell what the first does."""
    one = probe("class")
    assert [dataclasses.replace(row, name="") for row in one.all_layers] == [
        dataclasses.replace(row, name="") for row in one.layers
    ]
    assert [row.name for row in one.all_layers] == ["all layers"] * 2
    model = detector(batch="images")
    blind = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
    nn.init.zeros_(blind[0].weight)
    model.roi_heads.box_head.add_module("blind", blind)
    two = statistics_probe(model, painted(15, 8, tells="class"), 15, permutations=5)
    assert {row.name for row in two.layers} == {
        "roi_heads.box_head.conv1.norm",
        "roi_heads.box_head.blind.1",
    }
    (row,) = [row for row in two.all_layers if row.label == PRESENCE]
    assert row.bits == pytest.approx(bits(one, PRESENCE).bits, abs=0.05)
    assert "all layers" in str(two)


def test_labels_that_do_not_vary_are_left_out():
    data = batches(3, 4, 0, correlation=1.0, own_evidence=0.5)
    report = statistics_probe(detector(batch="images"), data, 3, permutations=2)
    assert {row.label for row in report.layers} <= {PRESENCE}  # every image has 6 objects


def test_seeds_and_json():
    data = painted(5, 6, tells="class")
    first, same = (
        statistics_probe(detector(batch="images"), data, 5, permutations=2, seed=3)
        for _ in range(2)
    )
    assert first == same
    rows = json.loads(json.dumps(dataclasses.asdict(first)))["layers"]
    assert {row["label"] for row in rows} == {PRESENCE, NUMBER}
    assert "classes present" in str(first)


def test_mistakes():
    with pytest.raises(ValueError, match="num_batches is 1; cross-validation"):
        statistics_probe(detector(), [], 1)
    with pytest.raises(ValueError, match="permutations is 1"):
        statistics_probe(detector(), [], 2, permutations=1)
