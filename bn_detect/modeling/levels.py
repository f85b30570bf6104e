"""BatchNorm for heads whose layers all feature levels share."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..layers import LevelBatchNorm2d


def level_norm(
    norm: str, num_levels: int, **choices: Any
) -> Callable[[int], LevelBatchNorm2d] | None:
    """Return a function that makes a layer from its channels; None where `norm` is another one.

    Args:
        norm: "BN": a worker's statistics normalize in training, "SyncBN": those of all workers.
        num_levels: number of feature levels.
        choices: batch, population, affine, moving_average of `LevelBatchNorm2d`.
    """
    if norm not in ("BN", "SyncBN"):
        return None
    return lambda channels: LevelBatchNorm2d(
        channels, num_levels, synchronized=norm == "SyncBN", **choices
    )


def over_levels(layers: Iterable[nn.Module], features: list[Tensor]) -> list[Tensor]:
    """Apply the layers in turn to the features of all levels, finest level first."""
    for layer in layers:
        if isinstance(layer, LevelBatchNorm2d):
            features = layer(features)
        else:
            features = [layer(x) for x in features]
    return features
