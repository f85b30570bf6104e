"""The setting of an experiment: whose statistics normalize a RoI."""

from dataclasses import dataclass
from functools import cached_property

from .batches import BATCHES, Batch

EXCHANGES = ("statistics", "features")
TEST_STATISTICS = ("population", "minibatch")


@dataclass(frozen=True)
class NormalizationBatch:
    """The partition of the RoIs of one training step, over all workers, into groups.

    Attributes:
        batch: a name in `BATCHES`. "images": `images_per_group` consecutive images of a worker are
            a group; "worker": all RoIs of a worker (per-GPU BN); "shuffled": a fresh random
            balanced partition into as many groups as there are workers; "global": one group
            (SyncBN).
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
        # `configuration.keys.naming_keys` makes config keys of the names in these messages.
        require_one_of("batch", self.batch, tuple(BATCHES))
        require_one_of("exchange", self.exchange, EXCHANGES)
        require_one_of("test_stats", self.test_stats, TEST_STATISTICS)
        for name in ("images_per_group", "virtual_workers", "test_images_per_group"):
            if _whole(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if _whole("shuffle_groups", self.shuffle_groups) < 0:
            raise ValueError(
                f"shuffle_groups is {self.shuffle_groups}; it must be a number of workers, or 0 "
                "for all"
            )
        self.kind.check()

    @cached_property
    def kind(self) -> Batch:
        """The object of the batch's class, which knows everything that is particular to it."""
        return BATCHES[self.batch](self)

    @property
    def moves_features(self) -> bool:
        """Return whether RoI features travel between workers."""
        return self.kind.moves_features

    @property
    def needs_images(self) -> bool:
        """Return whether the partition depends on which image a RoI comes from."""
        return self.kind.needs_images or self.test_stats == "minibatch"

    @property
    def needs_labels(self) -> bool:
        """Return whether the partition depends on the class of each RoI."""
        return self.kind.needs_labels

    @cached_property
    def varies(self) -> bool:
        """Return whether forwards with equally many RoIs may have other groups."""
        return self.kind.draws or self.needs_images or self.needs_labels

    def check_images(self, images: int) -> None:
        """Raise ValueError where a worker with so many images in a step cannot have such groups."""
        self.kind.check_images(images)

    def spans(self, processes: int) -> int:
        """Return how many consecutive ones of all `processes` share groups; see `Batch.spans`."""
        return self.kind.spans(processes)


def require_one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise ValueError, naming all three, where a value is not valid."""
    if value not in valid:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(valid)}")


def _whole(name: str, value: int) -> int:
    if type(value) is not int:  # a bool is none
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    return value
