"""The batches that a probe takes from a loader."""

from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


def take(loader: Iterable[Any], num_batches: int, task: str) -> Iterator[Any]:
    """Yield the first batches of a loader, behind a progress bar that names the task.

    Raises:
        ValueError: `num_batches` is below 1, or the loader ends early.
    """
    if num_batches < 1:
        raise ValueError(f"num_batches is {num_batches}; it must be at least 1")
    batches, end = iter(loader), object()
    for done in tqdm(range(num_batches), desc=task, leave=False):
        batch = next(batches, end)
        if batch is end:
            raise ValueError(f"the loader ended after {done} of num_batches = {num_batches}")
        yield batch
