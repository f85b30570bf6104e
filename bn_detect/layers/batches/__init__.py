"""The normalization batches: one class in one file each, found by name in `BATCHES`.

docs/extending.md shows how to add one, from inside or outside of the package.
"""

from .base import BATCHES, Batch, Cost, register_batch
from .global_ import GlobalBatch
from .images import ImagesBatch
from .roi_facts import RoIFacts
from .shuffled import ShuffledBatch
from .worker import WorkerBatch

for _batch in (ImagesBatch, WorkerBatch, ShuffledBatch, GlobalBatch):
    register_batch(_batch)

__all__ = ["BATCHES", "Batch", "Cost", "RoIFacts", "register_batch"]
