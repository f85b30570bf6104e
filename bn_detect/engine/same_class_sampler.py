"""Draw mini-batches of few classes: a worker's images in a step are of the same ones."""

from collections.abc import Iterator, Sequence

import numpy as np


class SameClassSampler:
    """An endless stream of a process's image indices; a worker's batch holds `classes` classes.

    The classes of a worker are drawn anew at each step, and its images are spread evenly over
    them. The images of a class come in random order, all of them before one comes again. Batches
    are a function of the seed; what process p of P with V virtual workers draws is what workers
    pV to (p + 1)V - 1 of one process with PV virtual workers draw.

    Args:
        labels: of every image of the dataset.
        classes: in each worker's batch, at most as many as there are.
        worker_batch: images of a worker in a step, at least `classes`.
        seed: the same on every process.
        rank, world_size: of the processes. virtual_workers: of each process.

    Raises:
        ValueError: `classes` that a batch or the dataset cannot hold.
    """

    def __init__(
        self,
        labels: Sequence[int],
        classes: int,
        worker_batch: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        virtual_workers: int = 1,
    ) -> None:
        self._of_class = [np.flatnonzero(np.equal(labels, label)) for label in sorted(set(labels))]
        if not 1 <= classes <= min(worker_batch, len(self._of_class)):
            raise ValueError(
                f"DATALOADER.CLASSES_PER_WORKER_BATCH is {classes}; it must be at most the "
                f"{worker_batch} images of a worker's batch and the {len(self._of_class)} classes "
                "of the dataset"
            )
        self._classes, self._worker_batch, self._seed = classes, worker_batch, seed
        self._workers = world_size * virtual_workers
        self._mine = range(rank * virtual_workers, (rank + 1) * virtual_workers)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(self._seed)
        streams = [_endless(images, rng) for images in self._of_class]
        while True:
            for worker in range(self._workers):
                chosen = rng.choice(len(streams), self._classes, replace=False)
                of_place = np.resize(chosen, self._worker_batch)
                batch = [next(streams[label]) for label in of_place]
                if worker in self._mine:
                    yield from batch


def _endless(images: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(images).tolist()
