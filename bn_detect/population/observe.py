"""Hooks that pool the moments of what BatchNorm layers get during a PreciseBN pass."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ..layers import LevelBatchNorm2d
from .bn_layers import running_statistics
from .moments import BatchedMoments, moments


def num_populations(layer: _BatchNorm) -> int:
    """Return how many populations a layer keeps the statistics of: one, or one per level."""
    if isinstance(layer, LevelBatchNorm2d) and layer.population == "level":
        return layer.num_levels
    return 1


def observe(layer: _BatchNorm, populations: list[BatchedMoments]) -> list[RemovableHandle]:
    """Hook `layer` so that each call adds the moments of its input to its population.

    May set `layer.momentum` to 1; the caller restores it.

    Args:
        populations: `num_populations(layer)` of them.
    """
    if isinstance(layer, LevelBatchNorm2d):
        return [_observe_levels(layer, populations)]
    if getattr(layer.forward, "__func__", None) is _BatchNorm.forward and layer.track_running_stats:
        return _observe_by_buffers(layer, populations[0])
    return [watch_input(layer, populations[0].add)]


def _observe_levels(layer: LevelBatchNorm2d, populations: list[BatchedMoments]) -> RemovableHandle:
    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for level, x in layer.by_level(*args, **kwargs).items():
            populations[level if len(populations) > 1 else 0].add(x.detach())

    return layer.register_forward_pre_hook(add, with_kwargs=True)


def watch_input(layer: nn.Module, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Hook `layer` so that `see` gets the input of each call."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(_input(args, kwargs))

    return layer.register_forward_pre_hook(before, with_kwargs=True)


def _observe_by_buffers(layer: _BatchNorm, population: BatchedMoments) -> list[RemovableHandle]:
    """Read the moments that torch's own layers compute anyway.

    With momentum 1 the buffers hold, after a call, the mean and unbiased variance of its input.
    """
    running_mean, running_var = running_statistics(layer)

    def reset(*_: Any) -> None:
        running_mean.zero_()
        running_var.zero_()

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        if not y.numel():
            return
        count = y.numel() // y.shape[1]
        mean, m2 = running_mean.double(), running_var.double() * (count - 1)
        # Far from zero, float32 and the layer's algorithm may be too coarse.
        far = mean.square() * count > 100 * m2
        if far.any():
            mean[far], m2[far] = moments(_input(args, kwargs)[:, far])
        population.add_moments(count, mean, m2)

    layer.momentum = 1.0
    return [
        layer.register_forward_pre_hook(reset),
        layer.register_forward_hook(add, with_kwargs=True),
    ]


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x: Tensor = (*args, *kwargs.values())[0]
    return x.detach()
