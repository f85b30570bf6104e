"""Training: the trainer, its hooks, and the command behind tools/train_net.py."""

from .hooks import AverageRunningStatistics, SeedIteration
from .trainer import BNTrainer

__all__ = ["AverageRunningStatistics", "BNTrainer", "SeedIteration"]
