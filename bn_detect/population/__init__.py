"""Population statistics of BatchNorm: PreciseBN, freezing, and averages over the ranks.

Needs torch alone; models of Detectron2 are understood where it is installed.
"""

from .averaging import average_running_statistics, statistics_are_finite
from .freezing import freeze_batchnorm
from .precise_bn import update_population_stats
from .report import LayerReport, PopulationReport

__all__ = [
    "LayerReport",
    "PopulationReport",
    "average_running_statistics",
    "freeze_batchnorm",
    "statistics_are_finite",
    "update_population_stats",
]
