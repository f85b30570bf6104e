"""BatchNorm in R-CNN heads with an explicit normalization batch, on top of Detectron2.

Importing this package registers its heads and datasets with Detectron2; a dataset of yours that has
one of their names already stays.
"""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "bn_detect needs Detectron2: run `make setup` in a clone of bn_detect, or install it as "
        "https://detectron2.readthedocs.io/tutorials/install.html says."
    ) from error

from . import modeling  # registers the heads
from .configuration.keys import add_bn_detect_config
from .data import register_all
from .layers import (
    NormalizationBatch,
    RoIBatchNorm2d,
    RoILayout,
    convert_batchnorm,
    convert_roi_batchnorm,
    grouped_batch_norm,
    set_iteration,
)
from .population import update_population_stats
from .population.averaging import average_running_statistics

register_all(replace=False)

__version__ = "0.1.0"
__all__ = [
    "NormalizationBatch",
    "RoIBatchNorm2d",
    "RoILayout",
    "add_bn_detect_config",
    "average_running_statistics",
    "convert_batchnorm",
    "convert_roi_batchnorm",
    "grouped_batch_norm",
    "modeling",
    "set_iteration",
    "update_population_stats",
]
