"""What heads whose layers all feature levels share need for their BatchNorm."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from ..layers import LevelBatchNorm2d


def level_norm(
    norm: str, num_levels: int, **choices: str
) -> Callable[[int], LevelBatchNorm2d] | None:
    """From channels to a layer over all levels, for "BN" and "SyncBN"; None for other norms.

    Args:
        norm: "BN": a worker's statistics normalize in training, "SyncBN": those of all workers.
        num_levels: of the features.
        choices: batch, population, affine, moving_average of `LevelBatchNorm2d`.
    """
    if norm not in ("BN", "SyncBN"):
        return None
    return lambda channels: LevelBatchNorm2d(
        channels, num_levels, synchronized=norm == "SyncBN", **choices
    )


def over_levels(layers: Iterable[nn.Module], features: list[Tensor]) -> list[Tensor]:
    """Apply layer after layer to the features of all levels, finest first."""
    for layer in layers:
        if isinstance(layer, LevelBatchNorm2d):
            features = layer(features)
        else:
            features = [layer(x) for x in features]
    return features
