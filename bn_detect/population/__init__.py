"""Population statistics of BatchNorm: PreciseBN, and moving averages equal on all ranks."""

from .averaging import average_running_statistics, statistics_are_finite
from .precise_bn import update_population_stats
from .report import LayerReport, PopulationReport

__all__ = [
    "LayerReport",
    "PopulationReport",
    "average_running_statistics",
    "statistics_are_finite",
    "update_population_stats",
]
