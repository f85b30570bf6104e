"""BatchNorm with an explicit normalization batch; knows nothing of Detectron2."""

from .convert import convert_roi_batchnorm, set_iteration, use_layout
from .grouped_batch_norm import grouped_batch_norm
from .normalization_batch import NormalizationBatch
from .roi_batch_norm import RoIBatchNorm2d
from .roi_layout import RoILayout
from .running_statistics import average_running_statistics

__all__ = [
    "NormalizationBatch",
    "RoIBatchNorm2d",
    "RoILayout",
    "average_running_statistics",
    "convert_roi_batchnorm",
    "grouped_batch_norm",
    "set_iteration",
    "use_layout",
]
