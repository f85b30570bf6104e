"""Training: the trainer, its hooks, and the command behind tools/train_net.py."""

from .hooks import AverageRunningStatistics, FreezeBN, PreciseBN, SeedIteration
from .population import update_population_stats
from .population_report import LayerReport, PopulationReport
from .trainer import BNTrainer

__all__ = [
    "AverageRunningStatistics",
    "BNTrainer",
    "FreezeBN",
    "LayerReport",
    "PopulationReport",
    "PreciseBN",
    "SeedIteration",
    "update_population_stats",
]
