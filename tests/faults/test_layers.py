"""The layer composed with what else acts on modules: checkpointing, threads, TorchScript, casts."""

import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, weight_norm
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from bn_detect.engine import PreciseBN
from bn_detect.layers import (
    LevelBatchNorm2d,
    NormalizationBatch,
    RoIBatchNorm2d,
    RoILayout,
    convert_batchnorm,
    convert_roi_batchnorm,
    grouped_batch_norm,
)
from bn_detect.population import freeze_batchnorm
from bn_detect.probes import companion_swap, own_batch
from tests.helpers.ranks import run_ranks
from tests.layers.layouts import test_forward_clock as clock
from tests.layers.layouts.test_forward_clock import SETTINGS, Head, gradients
from tests.layers.layouts.test_pooler_call import BOXES, Swapped, X
from tests.layers.test_convert import Conv
from tests.probes import toy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.fault(
    "activation checkpointing of any part, several forwards before backwards in any order",
    should="the gradients are those without checkpointing",
)
def test_checkpointing(size, happened):
    chance, worst = random.Random(0), 0.0
    trials = size(20, 300)
    for _ in range(trials):
        setting = chance.choice(SETTINGS)
        repeated = chance.choice(
            ["head", "all"] if "exchange" in setting else ["head", "each", "all"]
        )
        order = chance.choice([None, *[tuple(chance.sample(range(3), 3)) for _ in range(3)]])
        expected = gradients(Head(setting), order)
        found = gradients(Head(setting, repeated, use_reentrant=chance.random() < 0.5), order)
        for a, b in zip(found, expected, strict=True):
            worst = max(worst, float((a - b).abs().max() / (1 + b.abs().max())))
    assert worst < 1e-9
    happened(f"{trials} trials, off by {worst:.0e} at most")


@pytest.mark.fault(
    "activation checkpointing without the random state, several forwards before one backward "
    "(use_reentrant={reentrant})",
    should="refused with the remedy",
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_without_random_state(reentrant, happened):
    head = Head(SETTINGS[0], "head", use_reentrant=reentrant, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="preserve_rng_state=True") as error:
        gradients(head)
    happened(str(error.value))


@pytest.mark.fault(
    "activation checkpointing under DistributedDataParallel on two ranks, forwards before one "
    "backward, or before one backward each",
    should="the gradients are those without checkpointing",
)
def test_checkpointing_on_ranks(happened):
    by_rank = run_ranks(clock.on_rank, 2)
    for found in by_rank:
        for (*case, _), grads in found.items():
            torch.testing.assert_close(grads, found[(*case, "nothing")], rtol=1e-9, atol=1e-9)
    happened(f"{len(by_rank[0])} cases on each rank, equal")


@pytest.mark.fault(
    "a backward runs a new forward of the head, each with or without activation checkpointing",
    should="both have the groups of their own images",
)
def test_forwards_in_backwards(happened):
    parts = ("nothing", "head", "all")
    cases = [(s, outer, inner) for s in SETTINGS for outer in parts for inner in parts]
    for case in cases:
        clock.test_a_new_forward_inside_a_backward(*case)
    happened(f"{len(cases)} cases, equal")


@pytest.mark.parametrize("what", ["one head", "replicas as DataParallel makes them"])
@pytest.mark.fault(
    "4 threads with mini-batch statistics, each with images of its own, call {what}",
    should="each gets what it gets alone",
)
def test_threads(what, size, happened):
    if what == "one head":
        heads = [Head({"batch": "shuffled", "test_stats": "minibatch"}).eval()] * 4
    else:
        heads = clock.replicas(Head({"batch": "images"}), 4)
    calls = size(60, 2000)
    wrong = clock.inference_in_threads(heads, calls)
    assert wrong == 0
    happened(f"{wrong} of {4 * calls} outputs differ")


@pytest.mark.fault("a layer {mode} is {how}", should="refused, where groups are needed")
@pytest.mark.parametrize("how", ["scripted", "traced"])
@pytest.mark.parametrize("mode", ["in training mode", "with mini-batch statistics at inference"])
def test_torchscript(mode, how, happened):
    training = mode == "in training mode"
    layout = RoILayout(NormalizationBatch(test_stats="population" if training else "minibatch"))
    layer = RoIBatchNorm2d(2, layout=layout).train(training)
    x = torch.randn(4, 2, 3, 3)
    layout.record([2, 2])
    with pytest.raises((RuntimeError, torch.jit.Error)) as error:
        torch.jit.script(layer)(x) if how == "scripted" else torch.jit.trace(layer, x)
    happened(str(error.value).strip().splitlines()[-1])


@pytest.mark.fault("{where} gets {what}", should="refused, as torch does")
@pytest.mark.parametrize("where", ["RoIBatchNorm2d", "LevelBatchNorm2d", "grouped_batch_norm"])
@pytest.mark.parametrize("what", ["integers", "complex numbers", "a constant channel with eps 0"])
def test_values(what, where, happened):
    dtypes = {"integers": torch.int64, "complex numbers": torch.complex64}
    eps = 0.0 if "eps" in what else 1e-5
    x = torch.ones(4, 2, 3, 3, dtype=dtypes.get(what, torch.float32))
    calls = {
        "RoIBatchNorm2d": lambda: RoIBatchNorm2d(2, eps=eps)(x),
        "LevelBatchNorm2d": lambda: LevelBatchNorm2d(2, 2, eps=eps)([x, x]),
        "grouped_batch_norm": lambda: grouped_batch_norm(
            x, None, None, torch.zeros(4).long(), 1, eps
        ),
    }
    with pytest.raises((RuntimeError, ValueError), match=where) as error:
        calls[where]()
    happened(str(error.value))


@pytest.mark.fault(
    "a half-precision layer sees a variance above 65504", should="torch's moving average"
)
def test_half(happened):
    x = (torch.randn(64, 2, 4, 4) * 400).half()
    ours, theirs = RoIBatchNorm2d(2).half(), nn.BatchNorm2d(2).half()
    ours(x), theirs(x)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=2e-3, atol=0)
    happened(f"running_var {ours.running_var[0]:.0f}, torch's {theirs.running_var[0]:.0f}")


@pytest.mark.fault(
    "SyncBatchNorm.convert_sync_batchnorm on a converted model", should="told at once"
)
def test_sync_batch_norm(happened, caplog):
    model = nn.Sequential(Conv(), nn.Sequential(Conv()))
    convert_roi_batchnorm(model[1], "shuffled")
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    (record,) = caplog.records
    happened(record.getMessage())


@pytest.mark.fault(
    "load_state_dict(assign=True) after a build on the meta device", should="it trains"
)
def test_meta(happened):
    with torch.device("meta"):
        layer = RoIBatchNorm2d(2, layout=RoILayout(NormalizationBatch("global")))
    layer.load_state_dict(RoIBatchNorm2d(2).state_dict(), assign=True)
    layer(torch.randn(4, 2, 3, 3)).sum().backward()
    assert layer.running_mean.ne(0).all() and not layer.ema_weight.is_meta
    happened("trained a step")


@pytest.mark.fault(
    "a whole torchvision detector is converted, with groups of images",
    should="refused with the parts to pass; nothing is converted",
)
def test_whole_detectors(happened):
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    before = list(model.modules())
    with pytest.raises(ValueError, match="FasterRCNN is a whole detector.*box_roi_pool") as error:
        convert_roi_batchnorm(model, "images", pooler=model.roi_heads.box_roi_pool)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))
    happened(str(error.value))


@pytest.mark.fault(
    "PreciseBN in a trainer that left the model in evaluation mode",
    should="it is done all the same",
)
def test_precise_bn_in_evaluation_mode(happened):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)).eval()
    freeze_batchnorm(model, ["1"])
    PreciseBN(model, lambda: [torch.randn(4, 2, 3, 3)], 1).run()
    assert (model[0].running_mean != 0).all() and (model[1].running_mean == 0).all()
    happened("updated, less a frozen layer")


@pytest.mark.fault(
    "a probe of a head with Detectron2's naiveSyncBN", should="its batch is that of all workers"
)
def test_probes_of_synchronized_heads(happened):
    """Of four workers with one image each: a group has their RoIs, not those of one image."""
    data = toy.batches(2, 4, 0, correlation=1.0, own_evidence=0.5)
    model = toy.detector("naiveSyncBN")
    found = companion_swap(model, data, 2, partition=own_batch(model, 4))
    assert found == companion_swap(model, data, 2, partition=NormalizationBatch("global"))
    assert found != companion_swap(model, data, 2, partition=NormalizationBatch("images"))
    happened(f"{own_batch(model, 4).batch}: {found.classification.change}")


# Conversions.


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def _parametrized() -> nn.Module:
    bn = nn.BatchNorm2d(3)
    parametrize.register_parametrization(bn, "weight", Doubled())
    return bn


def _weight_normed() -> nn.Module:
    return weight_norm(nn.BatchNorm2d(3), dim=None)


UNCONVERTIBLE = {
    "parametrized": (_parametrized, ["ParametrizedBatchNorm2d", "remove_parametrizations"]),
    "weight-normalized": (_weight_normed, ["BatchNorm2d", "remove"]),
    "lazy": (nn.LazyBatchNorm2d, ["LazyBatchNorm2d", "run one batch"]),
    "one of levels": (lambda: LevelBatchNorm2d(3, 2), ["LevelBatchNorm2d", "by itself"]),
}


@pytest.mark.parametrize("convert", [convert_roi_batchnorm, convert_batchnorm])
@pytest.mark.parametrize("kind", UNCONVERTIBLE)
@pytest.mark.fault(
    "{convert.__name__} of a head that holds a BatchNorm that is {kind}",
    should="named, with what to do; nothing is converted",
)
def test_conversions(convert, kind, happened):
    make, named = UNCONVERTIBLE[kind]
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(make()))
    before = list(model.modules())
    with pytest.raises(ValueError) as error:
        convert(model)
    for part in [*named, "'1.0'"]:
        assert part in str(error.value)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))
    happened(str(error.value))


class OneArgument(nn.Module):
    def forward(self, boxes: list) -> torch.Tensor:
        return torch.zeros(sum(map(len, boxes)), 3, 2, 2)


class Anything(nn.Module):
    def forward(self, *args, **kwargs) -> torch.Tensor:
        return torch.zeros(1)


POOLERS = {
    "of one argument": (OneArgument(), lambda pooler: pooler(BOXES), ["OneArgument", "missing"]),
    "of one argument by name": (
        OneArgument(),
        lambda pooler: pooler(boxes=BOXES),
        ["OneArgument", "missing"],
    ),
    "of any keywords": (Anything(), lambda pooler: pooler(x=X, boxes=BOXES), ["Anything", "miss"]),
    "with its arguments swapped": (Swapped(), lambda pooler: pooler(BOXES, X), ["Swapped", "Ten"]),
    "with numbers for boxes": (Swapped(), lambda pooler: pooler(X, [1, 2]), ["Swapped", "list"]),
}


@pytest.mark.parametrize("kind", POOLERS)
@pytest.mark.fault("a pooler is called {kind}", should="named, with what to do")
def test_poolers(kind, happened):
    pooler, call, named = POOLERS[kind]
    convert_roi_batchnorm(nn.BatchNorm2d(3), "images", pooler=pooler, name="my head")
    with pytest.raises(ValueError) as error:
        call(pooler)
    for part in [*named, "my head", "layout.record(rois_per_image)"]:
        assert part in str(error.value)
    happened(str(error.value))
