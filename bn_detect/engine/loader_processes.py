"""Start the processes of data loaders by fork, under every version of Python.

Python 3.14 starts processes through a server by default. A process of a loader would then get the
mapper by pickling, which not every mapper survives, and would be no child of its trainer: it would
not recognise the trainer's signals among those of a scheduler, which it must outlive.
"""

from typing import Any


def context(num_workers: int) -> str | None:
    """Return the `multiprocessing_context` for a `DataLoader` of `num_workers` processes."""
    return "fork" if num_workers else None


def forking(loader: Any) -> Any:
    """Let one of Detectron2's loaders start its processes by fork, and return it.

    Args:
        loader: a `DataLoader`, or one of Detectron2's wrappers, which holds it as `dataset`.
    """
    inner = loader
    while not hasattr(inner, "num_workers"):
        inner = inner.dataset if hasattr(inner, "dataset") else inner._dataset
    inner.multiprocessing_context = context(inner.num_workers)
    return loader
