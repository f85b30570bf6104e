"""Datasets: preparing, registering and checking them."""

from .check import check_dataset, check_datasets
from .classification_mapper import ClassificationMapper
from .corrupted import register_corrupted, write_corrupted
from .corruptions import CORRUPTIONS, corrupt
from .derived import register_derived
from .digits import prepare_digits, register_digits
from .errors import DatasetError
from .image_folders import CLASSIFICATION, register_image_folders, register_imagenet
from .leaky_shapes import LeakyShapesOptions, prepare_leaky_shapes, register_leaky_shapes
from .mapper import BNDatasetMapper, read_image
from .neon_trees import TilingOptions, prepare_neon_trees, register_neon_trees
from .summary import DatasetSummary, summary_table

__all__ = [
    "CLASSIFICATION",
    "CORRUPTIONS",
    "BNDatasetMapper",
    "ClassificationMapper",
    "DatasetError",
    "DatasetSummary",
    "LeakyShapesOptions",
    "TilingOptions",
    "check_dataset",
    "check_datasets",
    "corrupt",
    "prepare_digits",
    "prepare_leaky_shapes",
    "prepare_neon_trees",
    "read_image",
    "register_corrupted",
    "register_derived",
    "register_digits",
    "register_image_folders",
    "register_imagenet",
    "register_leaky_shapes",
    "register_neon_trees",
    "summary_table",
    "write_corrupted",
]
