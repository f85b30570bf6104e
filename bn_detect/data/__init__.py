"""Datasets: prepare, register, check and read them."""

from .. import needs_detectron2  # noqa: F401
from .checks.check import check_dataset, check_datasets, check_uses
from .checks.summary import DatasetSummary, summary_table
from .classification_mapper import ClassificationMapper
from .corrupted import register_corrupted, write_corrupted
from .corruptions import CORRUPTIONS, corrupt
from .datasets.image_folders import register_image_folders
from .datasets.registry import (
    DATASETS,
    Dataset,
    check_dataset_options,
    prepare_dataset,
    register_all,
    register_dataset,
)
from .derived import register_derived
from .errors import DatasetError
from .mapper import BNDatasetMapper, read_image
from .metadata import CLASSIFICATION
from .options import Options, option

__all__ = [
    "CLASSIFICATION",
    "CORRUPTIONS",
    "DATASETS",
    "BNDatasetMapper",
    "ClassificationMapper",
    "Dataset",
    "DatasetError",
    "DatasetSummary",
    "Options",
    "check_dataset",
    "check_dataset_options",
    "check_datasets",
    "check_uses",
    "corrupt",
    "option",
    "prepare_dataset",
    "read_image",
    "register_all",
    "register_corrupted",
    "register_dataset",
    "register_derived",
    "register_image_folders",
    "summary_table",
    "write_corrupted",
]
