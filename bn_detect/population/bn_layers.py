"""The BatchNorm layers of a model: found by name, and their running statistics."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def select_bn_layers(
    model: nn.Module, modules: Sequence[str] | None = None
) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers with running statistics, by their names in the model.

    Args:
        modules: dotted prefixes; only layers under one of them are returned. None: all layers.

    Raises:
        ValueError: the model has no such layer, `modules` is empty, or a prefix matches no layer.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not layers:
        raise ValueError("the model has no BatchNorm layer with running statistics")
    if modules is None:
        return layers
    prefixes = [modules] if isinstance(modules, str) else list(modules)
    if not prefixes:
        raise ValueError("modules is empty, which matches no BatchNorm layer; None means all")
    selected = set()
    for prefix in prefixes:
        names = {name for name in layers if name == prefix or name.startswith(f"{prefix}.")}
        if not names:
            parents = sorted({name.rsplit(".", 2)[0] for name in layers})
            raise ValueError(
                f"modules: {prefix!r} matches no BatchNorm layer; some are in {', '.join(parents)}"
            )
        selected |= names
    return {name: layer for name, layer in layers.items() if name in selected}


def running_statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the buffers (running mean, running variance) of a layer that has them."""
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean, layer.running_var


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel or DataParallel, or the model itself."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        module: nn.Module = model.module
        return module
    return model
