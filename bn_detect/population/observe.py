"""What BN layers see, pooled by hooks."""

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ..layers import LevelBatchNorm2d
from .moments import BatchedMoments, moments


def populations(layer: _BatchNorm) -> int:
    """How many populations a layer keeps the statistics of."""
    per_level = isinstance(layer, LevelBatchNorm2d) and layer.population == "level"
    return layer.num_levels if per_level else 1


def observe(layer: _BatchNorm, found: list[BatchedMoments]) -> list[RemovableHandle]:
    """Pool what `layer` sees, by its populations."""
    if isinstance(layer, LevelBatchNorm2d):
        return [_observe_levels(layer, found)]
    return _observe_one(layer, found[0])


def _observe_levels(layer: LevelBatchNorm2d, found: list[BatchedMoments]) -> RemovableHandle:
    def compute(_, args: tuple, kwargs: dict) -> None:
        for level, x in layer.by_level(*args, **kwargs).items():
            found[level if len(found) > 1 else 0].add(x.detach())

    return layer.register_forward_pre_hook(compute, with_kwargs=True)


def _observe_one(layer: _BatchNorm, found: BatchedMoments) -> list[RemovableHandle]:
    def compute(_, args: tuple, kwargs: dict) -> None:
        found.add((*args, *kwargs.values())[0].detach())

    def forget(*_) -> None:
        layer.running_mean.zero_()
        layer.running_var.zero_()

    def read(_, args: tuple, kwargs: dict, y: Tensor) -> None:
        if not y.numel():
            return
        count = y.numel() // y.shape[1]
        mean, m2 = layer.running_mean.double(), layer.running_var.double() * (count - 1)
        # Far from zero, float32 and the layer's algorithm may be too coarse.
        far = mean.square() * count > 100 * m2
        if far.any():
            x = (*args, *kwargs.values())[0].detach()
            mean[far], m2[far] = moments(x[:, far])
        found.add_moments(count, mean, m2)

    own_forward = getattr(layer.forward, "__func__", None) is _BatchNorm.forward
    if not own_forward or not layer.track_running_stats:
        return [layer.register_forward_pre_hook(compute, with_kwargs=True)]
    # torch's layers compute the moments anyway: with momentum 1 the buffers are those of the call.
    layer.momentum = 1.0
    return [
        layer.register_forward_pre_hook(forget),
        layer.register_forward_hook(read, with_kwargs=True),
    ]
