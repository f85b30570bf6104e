"""A trained `RoIBatchNorm2d`: at inference, its state, and in TorchScript."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout

from .reference import affine, features
from .roi_layer import DOUBLE, EXACT, buffers, gradients, layer_for

# Evaluation.


def trained_layer(**kwargs) -> RoIBatchNorm2d:
    layer = layer_for([4, 2], **kwargs)
    layer(features(6, 3, 2, 2, mean=2, std=3))
    return layer.eval()


def as_batch_norm(layer: RoIBatchNorm2d) -> nn.BatchNorm2d:
    theirs = nn.BatchNorm2d(3, **DOUBLE)
    theirs.load_state_dict(layer.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("batch", ["images", "worker", "shuffled", "global"])
def test_eval_equals_batch_norm(batch):
    layer = trained_layer(batch=batch)
    layer.layout.record([99])  # of no interest
    before = buffers(layer)
    for rois in (5, 1, 0):
        x = features(rois, 3, 2, 2)
        torch.testing.assert_close(
            gradients(layer, x), gradients(as_batch_norm(layer), x), rtol=0, atol=0
        )
    torch.testing.assert_close(buffers(layer), before, rtol=0, atol=0)


@pytest.mark.parametrize("batch", ["images", "worker", "shuffled", "global"])
def test_minibatch_test_statistics_are_those_of_each_image(batch):
    layer = trained_layer(batch=batch, test_stats="minibatch")
    before = buffers(layer)
    layer.layout.record([3, 0, 2])
    x = features(5, 3, 2, 2)
    parts = [F.batch_norm(part, None, None, *affine(3), True) for part in (x[:3], x[3:])]
    torch.testing.assert_close(layer(x), torch.cat(parts), **EXACT)
    torch.testing.assert_close(buffers(layer), before, rtol=0, atol=0)


def test_minibatch_test_statistics_of_groups_of_images():
    layer = trained_layer(batch="shuffled", test_stats="minibatch", test_images_per_group=2)
    layer.layout.record([3, 1, 0, 2, 4])
    x = features(10, 3, 2, 2)
    parts = [F.batch_norm(part, None, None, *affine(3), True) for part in x.split([4, 2, 4])]
    torch.testing.assert_close(layer(x), torch.cat(parts), **EXACT)


@pytest.mark.parametrize("compiler", ["script", "trace"])
def test_scripts_and_traces_in_eval_mode(compiler):
    layer = trained_layer(batch="shuffled")
    x = features(5, 3, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        if compiler == "script":
            compiled = torch.jit.script(nn.Sequential(layer, nn.ReLU()))
        else:
            compiled = torch.jit.trace(nn.Sequential(layer, nn.ReLU()), x)
    for rois in (5, 2, 0):
        x = features(rois, 3, 2, 2, seed=1)
        torch.testing.assert_close(compiled(x), as_batch_norm(layer)(x).relu(), rtol=0, atol=0)


# State.


def test_state_dict_is_that_of_batch_norm():
    layer, theirs = trained_layer(), nn.BatchNorm2d(3, **DOUBLE)
    assert list(layer.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(layer.state_dict(), strict=True)
    fresh = RoIBatchNorm2d(3, **DOUBLE)
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(fresh.state_dict(), layer.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("reset", ["load", "reset"])
def test_loaded_and_reset_statistics_have_full_weight(reset):
    layer = layer_for([0, 4])
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(features(4, 3, 2, 2))
    assert layer.ema_weight == pytest.approx(0.95)
    layer.load_state_dict(state) if reset == "load" else layer.reset_running_stats()
    assert layer.ema_weight == 1


def test_weights_can_be_assigned_to_a_layer_that_was_built_without_memory():
    state = RoIBatchNorm2d(2).state_dict()
    with torch.device("meta"):
        layer = RoIBatchNorm2d(2)
    layer.load_state_dict(state, assign=True)
    assert not [name for name, t in layer.named_buffers() if t.is_meta]
    expected = RoIBatchNorm2d(2)
    x = torch.randn(4, 2, 3, 3)
    torch.testing.assert_close(layer(x), expected(x))
    torch.testing.assert_close(dict(layer.named_buffers()), dict(expected.named_buffers()))


# TorchScript.


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_layer_refuses_to_train():
    layer, x = RoIBatchNorm2d(2), torch.randn(4, 2, 3, 3)
    scripted = torch.jit.script(layer)
    with pytest.raises(torch.jit.Error, match="population statistics only"):
        scripted(x)
    torch.testing.assert_close(scripted.eval()(x), layer.eval()(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mini_batch_statistics_at_inference_are_not_scripted():
    settings = NormalizationBatch(test_stats="minibatch")
    for layer in (
        RoIBatchNorm2d(2, layout=RoILayout(settings, name="my head")),
        RoIBatchNorm2d(2, track_running_stats=False, layout=RoILayout(name="my head")),
    ):
        with pytest.raises(RuntimeError, match="my head: .* cannot be scripted"):
            torch.jit.script(nn.Sequential(layer).eval())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("mode", ["training", "mini-batch statistics", "no running statistics"])
def test_groups_are_not_frozen_in_a_trace(mode):
    layout = RoILayout(NormalizationBatch(test_stats="minibatch"), name="my head")
    layer = RoIBatchNorm2d(2, track_running_stats=mode[:2] != "no", layout=layout)
    layout.record([4])
    with pytest.raises(RuntimeError, match="my head: .* cannot be traced"):
        torch.jit.trace(layer.train(mode == "training"), torch.randn(4, 2, 3, 3))
