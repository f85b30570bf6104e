"""Which layers are selected by which prefixes."""

import pytest
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from bn_detect.population.bn_layers import running_statistics, select_bn_layers, unwrapped


def model() -> nn.Module:
    """Layers a.0, a.1.0, ab, and one without running statistics."""
    bn = nn.BatchNorm2d
    nested = nn.Sequential(bn(1), nn.Sequential(bn(1)))
    none = bn(1, track_running_stats=False)
    return nn.ModuleDict({"a": nested, "ab": bn(1), "conv": nn.Conv2d(1, 1, 1), "none": none})


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        (None, ["a.0", "a.1.0", "ab"]),
        ("a", ["a.0", "a.1.0"]),
        (["ab", "a.1"], ["a.1.0", "ab"]),
        (("a.0", "a"), ["a.0", "a.1.0"]),
    ],
)
def test_prefixes_are_of_whole_names(modules, names):
    layers = select_bn_layers(model(), modules)
    assert list(layers) == names
    for layer in layers.values():
        mean, var = running_statistics(layer)
        assert mean is layer.running_mean and var is layer.running_var


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["backbone"], "modules: 'backbone' matches no BatchNorm layer; some are in"),
        (["a", "conv"], "modules: 'conv' matches no"),
        ([], "modules is empty"),
    ],
)
def test_prefixes_that_match_nothing(modules, message):
    with pytest.raises(ValueError, match=message):
        select_bn_layers(model(), modules)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(1, 1, 1), FrozenBatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False)],
)
def test_models_without_such_layers(layer):
    with pytest.raises(ValueError, match="no BatchNorm layer with running statistics"):
        select_bn_layers(layer)


def test_unwrapped():
    bn = nn.BatchNorm2d(1)
    assert unwrapped(bn) is bn and unwrapped(nn.DataParallel(bn)) is bn
