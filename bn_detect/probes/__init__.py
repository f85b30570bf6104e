"""Probes: measure how much a RoI head reads from the other RoIs of its normalization batch.

Needs torch alone, and the library of the detector that is probed (see `adapters`).
"""

from typing import Any

from .decompose import DecompositionReport, DecompositionRow, decomposition
from .intervals import Contrast, Interval
from .jacobian import JacobianReport, cross_roi_jacobian
from .probing import own_batch
from .registry import PROBES, Probe
from .statistics import LayerBits, StatisticsReport, statistics_probe
from .swaps.report import Dependence, Swap, SwapReport, SwapRow
from .swaps.swap import companion_swap
from .swaps.targets import FlipExample

__all__ = [
    "PROBES",
    "Contrast",
    "DecompositionReport",
    "DecompositionRow",
    "Dependence",
    "FlipExample",
    "Interval",
    "JacobianReport",
    "LayerBits",
    "Probe",
    "StatisticsReport",
    "Swap",
    "SwapReport",
    "SwapRow",
    "companion_swap",
    "cross_roi_jacobian",
    "decomposition",
    "own_batch",
    "statistics_probe",
]


def __getattr__(name: str) -> Any:
    """Import `probe_loader`, which needs Detectron2, only where it is asked for."""
    if name == "probe_loader":
        from .adapters.detectron2_batches import probe_loader

        return probe_loader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
