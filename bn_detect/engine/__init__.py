"""Training: the trainer and its hooks."""

from .. import needs_detectron2  # noqa: F401
from .hooks import AverageRunningStatistics, FreezeBN, PreciseBN, SeedIteration
from .trainer import BNTrainer

__all__ = ["AverageRunningStatistics", "BNTrainer", "FreezeBN", "PreciseBN", "SeedIteration"]
