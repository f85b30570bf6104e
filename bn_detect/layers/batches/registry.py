"""The registry in which a normalization batch is found by its name."""

from typing import TypeVar

from .base import Batch

BATCHES: dict[str, type[Batch]] = {}  # name -> class, in the order in which they were registered

_Batch = TypeVar("_Batch", bound=type[Batch])


def register_batch(batch: _Batch) -> _Batch:
    """Make a `Batch` known by its name to `NormalizationBatch` and MODEL.ROI_BN.BATCH.

    Returns:
        `batch`, so that this can decorate the class.

    Raises:
        ValueError: another class has this name already.
    """
    known = BATCHES.setdefault(batch.name, batch)
    if known is not batch:
        raise ValueError(
            f"a normalization batch named {batch.name!r} is registered already: "
            f"{known.__module__}.{known.__qualname__}; choose another name"
        )
    return batch
