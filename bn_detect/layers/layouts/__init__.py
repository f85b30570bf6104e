"""Layouts decide each RoI's group; a clock tells the forwards of a head apart."""

from .roi_layout import ImageLayout, RoILayout

__all__ = ["ImageLayout", "RoILayout"]
