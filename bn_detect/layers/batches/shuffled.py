"""The normalization batch "shuffled": a random part of the RoIs of all workers."""

import torch

from ...distributed.collectives import all_gather_int, rank, world_size
from ...distributed.roi_shuffle import balanced_shares, shuffled_owner
from ..partition import Partition
from .base import Batch
from .roi_facts import RoIFacts


class ShuffledBatch(Batch):
    """A balanced partition into as many groups as there are workers, drawn anew in each forward.

    With `shuffle_groups`, so many consecutive workers shuffle with one another. With exchange
    "features" the RoIs themselves move, and a process normalizes what it has received.
    """

    name = "shuffled"
    description = "a fresh random part of the RoIs of all workers"
    draws = True

    @property
    def needs_images(self) -> bool:
        return self._in_process and self.settings.shuffle_groups < self.settings.virtual_workers

    @property
    def moves_features(self) -> bool:
        return self.settings.exchange == "features"

    @property
    def counts(self) -> bool:
        return not self._in_process

    @property
    def _in_process(self) -> bool:
        """Return whether the workers that shuffle with one another are always of one process."""
        return 0 < self.settings.shuffle_groups <= self.settings.virtual_workers

    def check(self) -> None:
        size, virtual = self.settings.shuffle_groups, self.settings.virtual_workers
        if self.moves_features and virtual > 1:
            raise ValueError(
                f"exchange is 'features' with virtual_workers {virtual}: features "
                "move between processes only; use exchange 'statistics', or virtual_workers 1"
            )
        if not _nested(size, virtual):
            raise ValueError(
                f"shuffle_groups is {size} with virtual_workers {virtual}: a group of workers "
                "would hold a part of a process; use a divisor or a multiple of virtual_workers"
            )

    def spans(self, processes: int) -> int:
        size, virtual = self.settings.shuffle_groups, self.settings.virtual_workers
        if size == 0:
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

    def groups(self, processes: int) -> int:
        spans = self.spans(processes)
        moves = self.moves_features or spans == 1
        return 0 if moves else spans * self.settings.virtual_workers

    def partition(self, rois: RoIFacts) -> Partition:
        if self.moves_features:
            return Partition.one_group(rois.number, rois.device)
        if self._in_process:
            return self._partition_in_process(rois)
        span = self.span(rois.process_group)
        counts = all_gather_int(rois.number, rois.device, span)
        groups = world_size(span) * self.settings.virtual_workers
        start = sum(counts[: rank(span)])
        group = shuffled_owner(sum(counts), groups, rois.generator())[start : start + rois.number]
        shares = balanced_shares(sum(counts), groups)
        return Partition(group, groups, span, device=rois.device, rois=shares)

    def _partition_in_process(self, rois: RoIFacts) -> Partition:
        """Shuffle within each of the process's groups of `shuffle_groups` virtual workers."""
        virtual, size = self.settings.virtual_workers, self.settings.shuffle_groups
        shares = [rois.number]
        if size < virtual:
            images = rois.images_per_worker(virtual) * size
            per_image = rois.images()
            shares = [sum(per_image[i * images : (i + 1) * images]) for i in range(virtual // size)]
        parts = [
            part * size + shuffled_owner(share, size, rois.generator())
            for part, share in enumerate(shares)
        ]
        return Partition(torch.cat(parts), virtual, device=rois.device)


def _nested(a: int, b: int) -> bool:
    """Return whether one is a multiple of the other."""
    return a % b == 0 or b % a == 0
