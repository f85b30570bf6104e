"""Frozen layers use their statistics in training too, whatever happens to modes."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import NaiveSyncBatchNorm
from torch import Tensor, nn

from bn_detect import (
    NormalizationBatch,
    RoIBatchNorm2d,
    freeze_batchnorm,
    update_population_stats,
)
from bn_detect.layers import LevelBatchNorm2d
from bn_detect.population.freezing import is_frozen

C = 3
LAYERS = {
    "1d": lambda: nn.BatchNorm1d(C),
    "2d": lambda: nn.BatchNorm2d(C),
    "sync": lambda: nn.SyncBatchNorm(C),
    "naive sync": lambda: NaiveSyncBatchNorm(C),
    "RoI": lambda: RoIBatchNorm2d(C),
}


def batch(seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(6, C, 4, 4, generator=torch.Generator().manual_seed(seed))


def assert_frozen(layer: nn.Module, x: Tensor) -> None:
    """It normalizes with its statistics and keeps them, and its weights get gradients."""
    before = copy.deepcopy(layer.state_dict())
    y = layer(x)
    mean, var = layer.running_mean, layer.running_var
    torch.testing.assert_close(
        y, F.batch_norm(x, mean, var, layer.weight, layer.bias, eps=layer.eps)
    )
    layer.zero_grad()
    y.square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0 and layer.bias.grad.abs().sum() > 0
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", LAYERS)
def test_train_does_not_undo_it(kind):
    layer = LAYERS[kind]()
    x = batch().flatten(2) if kind == "1d" else batch()
    with torch.no_grad():
        nn.BatchNorm2d.forward(layer, x) if kind == "sync" else layer(x)
    model = nn.Sequential(layer)
    assert freeze_batchnorm(model) == ["0"] and is_frozen(layer)
    assert_frozen(layer, x)
    model.eval()
    model.train()
    layer.train(True)
    assert model.training and not layer.training
    assert_frozen(layer, x)


def test_levels():
    layer = LevelBatchNorm2d(C, 2, population="level")
    freeze_batchnorm(layer)
    layer.train()
    before = layer.running_mean.clone()
    layer([batch(0), batch(1)])
    assert not layer.training and torch.equal(layer.running_mean, before)


def test_only_the_modules_asked_for():
    model = nn.ModuleDict({"a": nn.BatchNorm2d(C), "b": nn.Sequential(nn.BatchNorm2d(C))})
    assert freeze_batchnorm(nn.DataParallel(model), modules=["b"]) == ["b.0"]
    model.train()
    assert model["a"].training and not model["b"][0].training
    assert is_frozen(model["b"][0]) and not is_frozen(model["a"])
    with pytest.raises(ValueError, match="modules: 'c' matches no BatchNorm layer"):
        freeze_batchnorm(model, ["c"])


def test_copies_and_pickles_stay_frozen_by_themselves():
    model = nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C))
    freeze_batchnorm(model, ["0"])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        other.train()
        assert [m.training for m in other] == [False, True] and is_frozen(other[0])
        assert other[0].train() is other[0]  # not the original


def test_layers_that_keep_their_mini_batch_at_inference():
    model = nn.ModuleDict({"a": nn.BatchNorm2d(C), "b": RoIBatchNorm2d(C)})
    model["b"].layout.settings = NormalizationBatch(test_stats="minibatch")
    with pytest.raises(ValueError, match="b has test_stats 'minibatch'.*'population'"):
        freeze_batchnorm(model)
    assert model["a"].training and not is_frozen(model["a"])
    assert freeze_batchnorm(model, modules=["a"]) == ["a"]


def test_a_precise_pass_renews_frozen_statistics():
    """For the pass the layers use their mini-batch; afterwards they are frozen as before."""
    model = nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C))
    freeze_batchnorm(model)
    x = batch()
    update_population_stats(model.train(), [x], 1, progress=False)
    assert all(is_frozen(m) and not m.training for m in model)
    torch.testing.assert_close(model[0].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_mean, torch.zeros(C), atol=1e-5, rtol=0)
    assert_frozen(model[0], x)


def test_frozen_models_trace_and_script():
    model = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    freeze_batchnorm(model)
    x = batch()
    expected = model.eval()(x)
    for exported in (torch.jit.trace(model, x), torch.jit.script(model)):
        torch.testing.assert_close(exported(x), expected)
