"""The layer composed with what else acts on modules: checkpointing, threads, TorchScript, casts."""

import random

import pytest
import torch
from torch import nn

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout, convert_roi_batchnorm
from tests.layers.layouts.test_forward_clock import SETTINGS, Head, gradients, inference_in_threads
from tests.layers.test_convert import Conv

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
    "activation checkpointing without the random state, several forwards before one backward",
    should="refused with the remedy",
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_without_random_state(reentrant, happened):
    head = Head(SETTINGS[0], "head", use_reentrant=reentrant, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="preserve_rng_state=True") as error:
        gradients(head)
    happened(str(error.value))


@pytest.mark.fault(
    "4 threads at inference with mini-batch statistics, each with images of its own",
    should="each gets what it gets alone",
)
def test_threads(size, happened):
    head = Head({"batch": "shuffled", "test_stats": "minibatch"}).eval()
    calls = size(60, 2000)
    wrong = inference_in_threads([head] * 4, calls)
    assert wrong == 0
    happened(f"{wrong} of {4 * calls} outputs differ")


@pytest.mark.fault("a layer in training mode is {how}", should="refused where groups are needed")
@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_torchscript(how, happened):
    layer, x = RoIBatchNorm2d(2), torch.randn(4, 2, 3, 3)
    with pytest.raises((RuntimeError, torch.jit.Error)) as error:
        torch.jit.script(layer)(x) if how == "scripted" else torch.jit.trace(layer, x)
    happened(str(error.value).strip().splitlines()[-1])


@pytest.mark.fault("a layer gets {what}", should="refused, as torch does")
@pytest.mark.parametrize("what", ["integers", "complex numbers", "a constant channel with eps 0"])
def test_values(what, happened):
    dtypes = {"integers": torch.int64, "complex numbers": torch.complex64}
    layer = RoIBatchNorm2d(2, eps=0.0 if "eps" in what else 1e-5)
    with pytest.raises((RuntimeError, ValueError)) as error:
        layer(torch.ones(4, 2, 3, 3, dtype=dtypes.get(what, torch.float32)))
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
