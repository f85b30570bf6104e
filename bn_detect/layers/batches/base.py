"""Normalization batches: their base class, and the registry in which their names find them."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

import torch.distributed as dist

from ...distributed.collectives import world_size
from ...distributed.neighbours import neighbours
from ..partition import Partition, by_image
from .roi_facts import RoIFacts

if TYPE_CHECKING:
    from ..normalization_batch import NormalizationBatch


class Cost(NamedTuple):
    """Numbers of 8 bytes that a process reduces in a training step.

    once: for a whole head; forward, backward: for each of its layers, each way. RoI features that
    move are not among them.
    """

    once: int
    forward: int
    backward: int


class Batch(ABC):
    """One way to partition the RoIs of a training step into groups, under given settings.

    A subclass sets `name` and `description`, says which facts it needs, and overrides `partition`.

    Attributes:
        name: the value of MODEL.ROI_BN.BATCH.
        description: whose statistics normalize a RoI, as the README's table has it.
        needs_labels: the groups depend on the class of each RoI.
        draws: the groups are drawn at random, anew in each forward.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    needs_labels: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def __init__(self, settings: "NormalizationBatch") -> None:
        self.settings = settings

    @property
    def needs_images(self) -> bool:
        """Return whether the groups depend on the image of each RoI."""
        return False

    @property
    def moves_features(self) -> bool:
        """Return whether RoI features travel between workers; a worker is then a group."""
        return False

    @property
    def counts(self) -> bool:
        """Return whether making a partition is a collective that gathers the numbers of RoIs."""
        return False

    def check(self) -> None:
        """Raise ValueError for settings that exclude each other; name the setting first."""
        del self

    def check_images(self, images: int) -> None:
        """Raise ValueError where a worker with so many images per step cannot have such groups."""
        del self, images

    def spans(self, processes: int) -> int:
        """Return how many consecutive ones of all `processes` share groups; 1: none do.

        Raises:
            ValueError: the settings do not fit so many processes.
        """
        return 1

    def span(self, process_group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
        """Return those of all processes that share groups with this one; None: there is no other.

        Where not all do, the first call is a collective over all ranks (see `neighbours`).

        Raises:
            ValueError: see `spans`.
        """
        processes = world_size(process_group)
        spans = self.spans(processes)
        return process_group if spans == processes else neighbours(spans)

    def groups(self, processes: int) -> int:
        """Return the number of groups that span processes, of those that one process belongs to."""
        return 1 if self.spans(processes) > 1 else 0

    def cost(self, channels: int, processes: int) -> Cost:
        """Return what is reduced for layers of so many channels: count, sum and sum of squares of
        each group forward, two sums backward."""
        groups = self.groups(processes)
        once = self.spans(processes) if self.counts and groups else 0
        return Cost(once, groups * (2 * channels + 1), groups * 2 * channels)

    @abstractmethod
    def partition(self, rois: RoIFacts) -> Partition:
        """Return the groups of this process's RoIs in training.

        Raises:
            ValueError: a fact that is needed is not known.
        """

    def test_partition(self, rois: RoIFacts) -> Partition:
        """Return the groups at inference: `test_images_per_group` consecutive images each."""
        images, size = rois.images(), self.settings.test_images_per_group
        groups = [i // size for i in range(len(images))]
        return by_image(groups, images, -(-len(images) // size), rois.device)


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
