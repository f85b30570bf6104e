"""BatchNorm with an explicit normalization batch; it needs torch alone."""

from .convert import (
    convert_batchnorm,
    convert_roi_batchnorm,
    revert_roi_batchnorm,
    set_iteration,
    use_layout,
)
from .grouped_batch_norm import grouped_batch_norm
from .layouts import ImageLayout, RoILayout
from .level_batch_norm import LevelBatchNorm2d, fill_levels
from .normalization_batch import NormalizationBatch
from .roi_batch_norm import RoIBatchNorm2d
from .statistics import STATISTICS, use_statistics

__all__ = [
    "STATISTICS",
    "ImageLayout",
    "LevelBatchNorm2d",
    "NormalizationBatch",
    "RoIBatchNorm2d",
    "RoILayout",
    "convert_batchnorm",
    "convert_roi_batchnorm",
    "fill_levels",
    "grouped_batch_norm",
    "revert_roi_batchnorm",
    "set_iteration",
    "use_layout",
    "use_statistics",
]
