"""Datasets: preparing, registering and checking them."""

from .check import check_dataset, check_datasets
from .errors import DatasetError
from .neon_trees import TilingOptions, prepare_neon_trees
from .registration import register_neon_trees
from .summary import DatasetSummary, summary_table

__all__ = [
    "DatasetError",
    "DatasetSummary",
    "TilingOptions",
    "check_dataset",
    "check_datasets",
    "prepare_neon_trees",
    "register_neon_trees",
    "summary_table",
]
