"""Datasets: preparing, registering and checking them."""

from .. import needs_detectron2  # noqa: F401
from .checks.check import check_dataset, check_datasets
from .checks.summary import DatasetSummary, summary_table
from .classification_mapper import ClassificationMapper
from .corrupted import register_corrupted, write_corrupted
from .corruptions import CORRUPTIONS, corrupt
from .datasets.digits import prepare_digits, register_digits
from .datasets.image_folders import CLASSIFICATION, register_image_folders, register_imagenet
from .datasets.leaky_shapes import LeakyShapesOptions, prepare_leaky_shapes, register_leaky_shapes
from .datasets.neon_trees import TilingOptions, prepare_neon_trees, register_neon_trees
from .derived import register_derived
from .errors import DatasetError
from .mapper import BNDatasetMapper, read_image

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
