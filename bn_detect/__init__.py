"""BatchNorm in R-CNN heads with an explicit normalization batch.

The layers, their conversion, RoI shuffling, population statistics and probes need torch alone.
Where Detectron2 is installed, importing this package registers its heads and datasets there; a
dataset of yours that already has one of their names stays.
"""

import warnings
from typing import Any

from .distributed import shuffle_rois, unshuffle_rois
from .layers import (
    NormalizationBatch,
    RoIBatchNorm2d,
    RoILayout,
    convert_batchnorm,
    convert_roi_batchnorm,
    grouped_batch_norm,
    set_iteration,
)
from .population import average_running_statistics, freeze_batchnorm, update_population_stats

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Detectron2 on torch's deprecations: nothing to act on
        import detectron2
        import detectron2.modeling
except ImportError:
    detectron2 = None

_WITH_DETECTRON2 = ("add_bn_detect_config", "modeling")

__version__ = "0.2.0"
__all__ = [
    "NormalizationBatch",
    "RoIBatchNorm2d",
    "RoILayout",
    "average_running_statistics",
    "convert_batchnorm",
    "convert_roi_batchnorm",
    "freeze_batchnorm",
    "grouped_batch_norm",
    "set_iteration",
    "shuffle_rois",
    "unshuffle_rois",
    "update_population_stats",
]

if detectron2 is not None:
    from . import modeling  # registers the heads
    from .configuration.keys import add_bn_detect_config
    from .data import register_all

    register_all(replace=False)
    __all__ += ["add_bn_detect_config", "modeling"]


def __getattr__(name: str) -> Any:
    """Say what to install when a name is asked for that exists with Detectron2 only (PEP 562)."""
    if name in _WITH_DETECTRON2:
        from . import needs_detectron2  # noqa: F401
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
