"""A model under a probe: its head, its modes and the groups of its RoIs."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_detect import NormalizationBatch, RoIBatchNorm2d, freeze_batchnorm
from bn_detect.layers.batches import BATCHES, Batch
from bn_detect.layers.batches.roi_facts import RoIFacts
from bn_detect.layers.partition import Partition, by_image
from bn_detect.probes import companion_swap, own_batch
from bn_detect.probes.adapters import find_head
from bn_detect.probes.probing import Groups, on_population_statistics, probing
from tests.modeling.small import CLASSES

from . import toy
from .models import batches, detector


def test_groups_are_those_of_the_layout():
    model, (batch,) = detector("box", batch="images"), batches("box", 1, images=4)
    with probing(model, None, 0) as (head, own):
        (rois,) = head.sample(batch)
        assert [set(rois.image[g].tolist()) for g in own(rois, 0)] == [{0}, {1}, {2}, {3}]
    setting = NormalizationBatch("shuffled", virtual_workers=4, exchange="statistics")
    shuffled = [Groups(setting)(rois, step) for step in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*shuffled[:2], strict=True))
    assert not torch.equal(shuffled[0][0], shuffled[2][0])
    for groups in shuffled:
        assert sorted(torch.cat(groups).tolist()) == list(range(len(rois)))
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
    # In one process, features stay.
    (everything,) = Groups(NormalizationBatch("shuffled", exchange="features"))(rois, 0)
    assert len(everything) == len(rois)


def test_the_head_is_in_training_and_the_rest_is_not():
    model = detector("fasterrcnn_resnet50_fpn_v2").eval()
    with probing(model, None, 0) as (head, _):
        names = {name for name, m in model.named_modules() if m.training}
        assert names and "rpn" in names
        assert all(name == "rpn" or name.startswith("roi_heads.box_") for name in names)
        assert list(head.bn_layers) == [
            name
            for name, m in model.roi_heads.named_modules(prefix="roi_heads")
            if isinstance(m, _BatchNorm) and "box_head" in name
        ]
        assert len(head.bn_layers) == 4


def test_the_way_to_the_head_may_be_wrapped():
    model, data = detector("box", batch="images"), batches("box", 2)
    expected = companion_swap(model, data, 2)
    assert repr(companion_swap(nn.DataParallel(model), data, 2)) == repr(expected)  # NaN != NaN


def test_subclasses_are_understood():
    model = detector("mask")
    model.roi_heads.__class__ = type("MyROIHeads", (type(model.roi_heads),), {})
    assert find_head(model).background == CLASSES


@pytest.mark.parametrize("kind", ["box", "c4"])
def test_a_head_with_synchronized_batchnorm_is_a_batch_over_all_workers(kind):
    def batch_of(norm: str, **roi_bn) -> NormalizationBatch:
        return own_batch(detector(kind, norm, **roi_bn), virtual_workers=2)

    for norm in ("SyncBN", "naiveSyncBN", "naiveSyncBN_N"):
        assert batch_of(norm) == NormalizationBatch("global"), norm
    assert batch_of("GN") == NormalizationBatch(virtual_workers=2)
    assert own_batch(detector("stock"), 4) == NormalizationBatch(virtual_workers=4)
    assert batch_of("BN", batch="images") == NormalizationBatch("images")


def test_own_batch_of_other_models():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(detector("fasterrcnn_resnet50_fpn_v2"))
    assert own_batch(model) == NormalizationBatch("global")
    model = toy.detector(batch="images")
    assert own_batch(nn.DataParallel(model)) == NormalizationBatch("images")
    model.roi_heads.box_head.add_module("other", RoIBatchNorm2d(3))
    with pytest.raises(ValueError, match="unequal normalization batches.*pass partition="):
        own_batch(model)
    with pytest.raises(ValueError, match="cannot probe Linear with roi_heads NoneType"):
        own_batch(nn.Linear(1, 1))


@pytest.mark.parametrize("test_stats", ["population", "minibatch"])
def test_population_statistics_are_those_of_the_model(test_stats):
    """Also where the model uses mini-batch statistics at inference."""
    model = toy.detector(batch="images", test_stats=test_stats)
    heads = toy.detector(batch="images").roi_heads.eval()  # the same weights
    (batch,) = toy.batches(1, 2, 0, correlation=1.0, own_evidence=0.5)
    with probing(model, None, 0) as (head, _), torch.no_grad():
        (rois,) = head.sample(batch)
        with on_population_statistics(head):
            population = head(rois.features).logits
        minibatch = head(rois.features).logits  # which moves the average that the model holds
        expected, _ = heads.box_predictor(heads.box_head(rois.features))
    torch.testing.assert_close(population, expected)
    assert not torch.allclose(minibatch, population)


def test_a_frozen_head_reads_no_companions():
    model = toy.train(toy.detector(batch="images"), 5, correlation=1.0, own_evidence=0.5)
    freeze_batchnorm(model)
    data = toy.batches(2, 4, 0, correlation=1.0, own_evidence=0.5)
    change = companion_swap(model, data, 2).classification.change
    assert (change.mean, change.low, change.high) == (0, 0, 0)


class ClassBatch(Batch):
    """The RoIs of each class by themselves."""

    name = "class"
    description = "the RoIs of its class"
    needs_labels = True

    def partition(self, rois: RoIFacts) -> Partition:
        return by_image(rois.labels().tolist(), [1] * rois.number, CLASSES + 1, rois.device)


def test_batches_that_depend_on_labels(monkeypatch):
    monkeypatch.setitem(BATCHES, "class", ClassBatch)
    (batch,) = batches("box", 1, images=4)
    with probing(detector("box"), NormalizationBatch("class"), 0) as (head, groups):
        (rois,) = head.sample(batch)
        labels = [rois.labels[group].unique().tolist() for group in groups(rois, 0)]
    assert len(labels) > 1 and all(len(each) == 1 for each in labels)
