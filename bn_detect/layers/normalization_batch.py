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
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("BATCH", self.batch, BATCHES)
        _one_of("EXCHANGE", self.exchange, EXCHANGES)
        _one_of("TEST_STATS", self.test_stats, TEST_STATISTICS)
        for key in ("images_per_group", "virtual_workers", "test_images_per_group"):
            value = getattr(self, key)
            if value < 1:
                raise ValueError(f"MODEL.ROI_BN.{key.upper()} is {value}; it must be at least 1")
        if self.moves_features and self.virtual_workers > 1:
            raise ValueError(
                "MODEL.ROI_BN.EXCHANGE is 'features' with VIRTUAL_WORKERS "
                f"{self.virtual_workers}: features move between processes only; use "
                "EXCHANGE 'statistics', or VIRTUAL_WORKERS 1"
            )

    @property
    def moves_features(self) -> bool:
        """Whether RoI features travel between workers."""
        return self.batch == "shuffled" and self.exchange == "features"

    @property
    def needs_images(self) -> bool:
        """Whether the partition depends on which image a RoI comes from."""
        split = self.virtual_workers > 1 and self.batch == "worker"
        return self.batch == "images" or split or self.test_stats == "minibatch"


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"MODEL.ROI_BN.{key} is {value!r}; it must be one of {', '.join(valid)}")
