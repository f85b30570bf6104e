"""Datasets: preparing, registering and checking them."""

from .check import check_dataset, check_datasets
from .errors import DatasetError
from .leaky_shapes import LeakyShapesOptions, prepare_leaky_shapes, register_leaky_shapes
from .neon_trees import TilingOptions, prepare_neon_trees, register_neon_trees
from .summary import DatasetSummary, summary_table

__all__ = [
    "DatasetError",
    "DatasetSummary",
    "LeakyShapesOptions",
    "TilingOptions",
    "check_dataset",
    "check_datasets",
    "prepare_leaky_shapes",
    "prepare_neon_trees",
    "register_leaky_shapes",
    "register_neon_trees",
    "summary_table",
]
