"""FrozenBN: BatchNorm layers that normalize with population statistics in training too."""

import functools
from collections.abc import Sequence

from torch import nn

from ..layers import RoIBatchNorm2d
from .bn_layers import select_bn_layers, unwrapped


def freeze_batchnorm(model: nn.Module, modules: Sequence[str] | None = None) -> list[str]:
    """Make BN layers normalize with their present running statistics from now on.

    The layers go to evaluation mode, and `model.train()` does not bring them back. Their weight and
    bias still train (Wu & Johnson 2021, Section 4.2). Call `average_running_statistics` or
    `update_population_stats` before it, so that all ranks freeze the same, good statistics.

    A checkpoint does not record that layers were frozen: a resumed run freezes them again. Frozen
    layers stay frozen in copies and pickles of the model.

    Args:
        model: wrapped in DistributedDataParallel or not.
        modules: dotted prefixes of the layers to freeze; None: every BN layer.

    Returns:
        The names of the layers that are frozen now.

    Raises:
        ValueError: see `freezable_layers`.
    """
    layers = freezable_layers(model, modules)
    for layer in layers.values():
        layer.eval()
        # Of this layer alone, which mypy takes for a mistake.
        layer.train = functools.partial(_stay_frozen, layer)  # type: ignore[method-assign]
    return list(layers)


def freezable_layers(
    model: nn.Module, modules: Sequence[str] | None = None
) -> dict[str, nn.Module]:
    """Return the layers that `freeze_batchnorm` freezes, by their names in the model.

    Raises:
        ValueError: a prefix matches no BN layer, or a layer has `test_stats` "minibatch" and would
            not use its population statistics in evaluation mode.
    """
    layers = select_bn_layers(unwrapped(model), modules)
    for name, layer in layers.items():
        if isinstance(layer, RoIBatchNorm2d) and layer.layout.settings.test_stats == "minibatch":
            raise ValueError(
                f"{name} has test_stats 'minibatch' and would normalize with mini-batch statistics "
                "when frozen too; give its layout test_stats 'population', or leave it out of "
                "modules"
            )
    return dict(layers)


def is_frozen(layer: nn.Module) -> bool:
    """Return whether `freeze_batchnorm` froze this layer."""
    train = vars(layer).get("train")
    return isinstance(train, functools.partial) and train.func is _stay_frozen


def _stay_frozen(layer: nn.Module, mode: bool = True) -> nn.Module:
    """Take the place of a frozen layer's `train`."""
    return layer
