"""Layouts decide each RoI's group; a clock tells the forwards of a head apart."""

from .image_layout import ImageLayout
from .roi_layout import RoILayout

__all__ = ["ImageLayout", "RoILayout"]
