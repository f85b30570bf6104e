"""Reading images, of which some datasets are corrupted as they are read.

A dataset dict says so by `"corruption": (name, severity)`. What is random in the corruption depends
on the image file's name, the corruption and the severity: it is the same at each reading.
"""

import copy
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from PIL import Image

from .corruptions import corrupt


class BNDatasetMapper(DatasetMapper):
    """Detectron2's `DatasetMapper`, which corrupts the images of corrupted datasets first."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        if "corruption" not in dataset_dict:
            return super().__call__(dataset_dict)
        first = T.ColorTransform(lambda image: corrupted(image, dataset_dict, self.image_format))
        mapper = copy.copy(self)
        mapper.augmentations = T.AugmentationList([first, *self.augmentations.augs])
        return DatasetMapper.__call__(mapper, dataset_dict)


def read_image(dataset_dict: dict[str, Any], format: str) -> np.ndarray:
    """The image of a dataset dict, corrupted where the dict says so.

    Args:
        dataset_dict: with "file_name" and perhaps "corruption".
        format: "RGB", "BGR" or "L"; without a corruption any of Detectron2's.

    Returns:
        (H, W, 3) uint8, (H, W, 1) for "L", turned upright where the file's EXIF says how.

    Raises:
        ValueError: see `corrupt`; or another format.
    """
    return corrupted(utils.read_image(dataset_dict["file_name"], format), dataset_dict, format)


def corrupted(image: np.ndarray, dataset_dict: dict[str, Any], format: str) -> np.ndarray:
    """The image as `dataset_dict` wants it; arguments and errors as in `read_image`."""
    if "corruption" not in dataset_dict:
        return image
    corruption, severity = dataset_dict["corruption"]
    parts = Path(dataset_dict["file_name"]).parts[-2:]  # wherever the dataset lies
    seed = zlib.crc32("/".join([*parts, corruption, str(severity)]).encode())
    if format == "RGB":
        return corrupt(image, corruption, severity, seed=seed)
    if format == "BGR":
        return corrupt(image[:, :, ::-1], corruption, severity, seed=seed)[:, :, ::-1].copy()
    if format == "L":
        rgb = corrupt(np.repeat(image, 3, axis=2), corruption, severity, seed=seed)
        return np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None]
    raise ValueError(f"INPUT.FORMAT is {format!r}; corrupted images are RGB, BGR or L")
