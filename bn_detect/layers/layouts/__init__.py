"""Where a RoI's group is decided: layouts, and the clock that tells forwards apart."""

from .image_layout import ImageLayout
from .roi_layout import RoILayout

__all__ = ["ImageLayout", "RoILayout"]
