"""The normalization batch "global": all RoIs of all workers, as SyncBN has it."""

from ..partition import Partition
from .base import Batch
from .roi_facts import RoIFacts


class GlobalBatch(Batch):
    """One group over all processes."""

    name = "global"
    description = "all RoIs"

    def spans(self, processes: int) -> int:
        return processes

    def partition(self, rois: RoIFacts) -> Partition:
        return Partition.one_group(rois.number, rois.device, rois.process_group)
