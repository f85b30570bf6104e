"""The setting of an experiment: whose statistics normalize a RoI."""

from dataclasses import dataclass

BATCHES = ("images", "worker", "shuffled", "global")
EXCHANGES = ("statistics", "features")
TEST_STATISTICS = ("population", "minibatch")


@dataclass(frozen=True)
class NormalizationBatch:
    """How the RoIs of one training step, over all workers, are partitioned into groups.

    Attributes:
        batch: "images": `images_per_group` consecutive images of a worker are a group; "worker":
            all RoIs of a worker (per-GPU BN); "shuffled": a fresh random balanced partition into
            as many groups as there are workers; "global": one group (SyncBN).
        images_per_group: for "images"; a worker's last group is smaller where it does not divide.
        virtual_workers: split the images of each process into this many consecutive equal parts,
            each of which counts as a worker.
        shuffle_groups: for "shuffled": so many consecutive workers shuffle with one another, say
            those of one node, and each such group of workers by itself; 0: all workers.
        exchange: for "shuffled": "statistics" leaves RoIs where they are and reduces the groups'
            statistics; "features" moves the RoI features before the head and its outputs back.
        test_stats: what normalizes at inference: "population", or "minibatch", where the RoIs of
            `test_images_per_group` consecutive images of a test batch are a group.
        test_images_per_group: 1: each image by itself; the last group of a test batch is smaller
            where it does not divide.
        seed: with the iteration and the head's name it determines the shuffles; the same on every
            rank.

    Raises:
        ValueError: a value that is not one of those above.
    """

    batch: str = "worker"
    images_per_group: int = 1
    virtual_workers: int = 1
    exchange: str = "statistics"
    test_stats: str = "population"
    test_images_per_group: int = 1
    shuffle_groups: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        # `config.naming_keys` makes config keys of the names in these messages.
        _one_of("batch", self.batch, BATCHES)
        _one_of("exchange", self.exchange, EXCHANGES)
        _one_of("test_stats", self.test_stats, TEST_STATISTICS)
        for name in ("images_per_group", "virtual_workers", "test_images_per_group"):
            if _whole(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.moves_features and self.virtual_workers > 1:
            raise ValueError(
                f"exchange is 'features' with virtual_workers {self.virtual_workers}: features "
                "move between processes only; use exchange 'statistics', or virtual_workers 1"
            )
        if _whole("shuffle_groups", self.shuffle_groups) < 0:
            raise ValueError(
                f"shuffle_groups is {self.shuffle_groups}; it must be a number of workers, or 0 "
                "for all"
            )
        if self.batch == "shuffled" and not _nested(self.shuffle_groups, self.virtual_workers):
            raise ValueError(
                f"shuffle_groups is {self.shuffle_groups} with virtual_workers "
                f"{self.virtual_workers}: a group of workers would hold a part of a process; use a "
                "divisor or a multiple of virtual_workers"
            )

    @property
    def moves_features(self) -> bool:
        """Whether RoI features travel between workers."""
        return self.batch == "shuffled" and self.exchange == "features"

    @property
    def needs_images(self) -> bool:
        """Whether the partition depends on which image a RoI comes from."""
        split = self.virtual_workers > 1 and self.batch == "worker"
        split |= self.shuffles_in_process and self.shuffle_groups < self.virtual_workers
        return self.batch == "images" or split or self.test_stats == "minibatch"

    @property
    def shuffles_in_process(self) -> bool:
        """Whether the workers that shuffle with one another are always of one process."""
        return self.batch == "shuffled" and 0 < self.shuffle_groups <= self.virtual_workers

    def shuffling_processes(self, processes: int) -> int:
        """How many consecutive ones of all `processes` shuffle with one another.

        Raises:
            ValueError: `shuffle_groups` does not divide the workers of all processes.
        """
        size, virtual = self.shuffle_groups, self.virtual_workers
        if self.batch != "shuffled" or size == 0:
            return processes
        workers = processes * virtual
        if workers % size:
            right = [n for n in range(1, workers + 1) if workers % n == 0 and _nested(n, virtual)]
            raise ValueError(
                f"shuffle_groups is {size}, which does not divide the {workers} workers "
                f"({processes} processes, virtual_workers {virtual}); use one of "
                f"{', '.join(map(str, right))}, or 0 for all workers"
            )
        return max(1, size // virtual)


def _nested(a: int, b: int) -> bool:
    """Whether one is a multiple of the other."""
    return a % b == 0 or b % a == 0


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(valid)}")


def _whole(name: str, value: int) -> int:
    if type(value) is not int:  # a bool is none
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    return value
