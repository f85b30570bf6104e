"""Leakage, measured: how much a RoI head reads from the other RoIs of its normalization batch."""

from .batches import probe_loader
from .bootstrap import Interval
from .swap import companion_swap
from .swap_report import FlipExample, Swap, SwapReport

__all__ = [
    "FlipExample",
    "Interval",
    "Swap",
    "SwapReport",
    "companion_swap",
    "probe_loader",
]
