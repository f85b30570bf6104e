"""Leakage, measured: how much a RoI head reads from the other RoIs of its normalization batch."""

from .batches import probe_loader
from .bootstrap import Interval
from .decompose import DecompositionReport, DecompositionRow, decomposition
from .jacobian import JacobianReport, cross_roi_jacobian
from .statistics import LayerBits, StatisticsReport, statistics_probe
from .swap import companion_swap
from .swap_report import FlipExample, Swap, SwapReport

__all__ = [
    "DecompositionReport",
    "DecompositionRow",
    "FlipExample",
    "Interval",
    "JacobianReport",
    "LayerBits",
    "StatisticsReport",
    "Swap",
    "SwapReport",
    "companion_swap",
    "cross_roi_jacobian",
    "decomposition",
    "probe_loader",
    "statistics_probe",
]
