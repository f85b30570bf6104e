"""A probe leaves everything as it was, also where something fails in its midst."""

from collections.abc import Callable

import pytest
import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from bn_detect.layers import RoIBatchNorm2d
from bn_detect.probes import (
    adversarial_swap,
    companion_swap,
    cross_roi_jacobian,
    decomposition,
    estimation_shift,
    mixed_statistics,
    probing,
    statistics_probe,
)
from tests.population.snapshot import Snapshot

from . import toy
from .models import batches, detector

PROBES: dict[str, Callable] = {
    "companion_swap": lambda model, data: companion_swap(model, data, len(data)),
    "cross_roi_jacobian": lambda model, data: cross_roi_jacobian(model, data, len(data)),
    "statistics_probe": lambda model, data: statistics_probe(
        model, data, len(data), permutations=2
    ),
    "decomposition": lambda model, data: decomposition(
        model,
        {"train": data},
        len(data),
        population_loader=data,
        population_batches=len(data),
    ),
    "adversarial_swap": lambda model, data: adversarial_swap(model, data, len(data)),
    "mixed_statistics": lambda model, data: mixed_statistics(model, {"train": data}, len(data)),
    "estimation_shift": lambda model, data: estimation_shift(model, data, len(data)),
}
MODELS = {
    "images": ("box", {"batch": "images"}),
    "shuffled features": ("mask", {"batch": "shuffled", "exchange": "features"}),
    "minibatch": ("box", {"batch": "worker", "virtual_workers": 2, "test_stats": "minibatch"}),
    "cascade": ("cascade", {"batch": "global"}),
    "c4": ("c4", {"batch": "images"}),
    "stock": ("stock", {}),
    "converted": ("converted", {}),
}


def layouts(model: nn.Module) -> list:
    """What the layouts of a model hold, but for caches."""
    every = {m.layout for m in model.modules() if isinstance(m, RoIBatchNorm2d)}
    return sorted(str((x.settings, x.rois_per_image, x._clock.__getstate__())) for x in every)


def used_detector(name: str) -> tuple[nn.Module, list]:
    """A model in the middle of its training."""
    kind, roi_bn = MODELS[name]
    model, data = detector(kind, **roi_bn), batches(kind, 2)
    with EventStorage():
        losses = model.train()(*data[0]) if isinstance(data[0], tuple) else model(data[0])
        sum(losses.values()).backward()
    return model, data


@pytest.mark.parametrize(
    ("name", "training"),
    [*((name, True) for name in MODELS), ("images", False), ("minibatch", False)],
)
def test_nothing_is_changed(name, training):
    model, data = used_detector(name)
    model.train(training)
    if name == "images":
        model = nn.DataParallel(model)  # as a wrapper: without GPUs it only passes on
    before, recorded = Snapshot(model), layouts(model)
    with EventStorage(7) as storage:
        for probe in PROBES.values():
            probe(model, data)
            before.assert_unchanged()
            assert layouts(model) == recorded
        assert get_event_storage() is storage and storage.iter == 7 and not storage.histories()
    assert torch.is_grad_enabled()


class Failure(Exception):
    pass


def loader_that_fails(data):
    yield data[0]
    raise Failure


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
@pytest.mark.parametrize("name", ["images", "minibatch", "stock"])
def test_nothing_is_changed_where_the_loader_fails(name, probe):
    model, data = used_detector(name)
    before, recorded = Snapshot(model), layouts(model)
    loader = type("Loader", (), {"__iter__": lambda _: loader_that_fails(data), "__len__": len})
    loader.__len__ = lambda _: 2
    with pytest.raises(Failure):
        probe(model, loader())
    before.assert_unchanged()
    assert layouts(model) == recorded


class FailsAtCall(nn.Module):
    """Does nothing, until a call that fails."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = [call]  # not a number: those are put back

    def forward(self, x):
        self.left[0] -= 1
        if not self.left[0]:
            raise Failure
        return x


@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_nothing_is_changed_where_the_head_fails(probe, call):
    model = toy.detector(batch="images")
    model.roi_heads.box_head = nn.Sequential(model.roi_heads.box_head, FailsAtCall(call))
    data = toy.batches(4, 4, 0, correlation=1.0, own_evidence=0.5)
    before, recorded = Snapshot(model), layouts(model)
    with pytest.raises(Failure):
        probe(model, data)
    before.assert_unchanged()
    assert layouts(model) == recorded


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_several_processes_are_refused(probe, monkeypatch):
    """At once, instead of waiting for one another in layers that span them."""
    monkeypatch.setattr(probing, "default_group", lambda: object())
    with pytest.raises(ValueError, match="probes run in one process, and this is one of several"):
        probe(toy.detector(), toy.batches(2, 2, 0, correlation=0.0, own_evidence=1.0))
