"""Read images, and corrupt those of corrupted datasets as they are read.

A dataset dict asks for it by `"corruption": (name, severity)`. The random part of the corruption is
seeded by the image file's name, the corruption and the severity, so each reading gives the same
pixels.
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
    """Detectron2's `DatasetMapper` with one more first step: corrupt where the dict asks for it."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        if "corruption" not in dataset_dict:
            return super().__call__(dataset_dict)
        first = T.ColorTransform(lambda image: corrupted(image, dataset_dict, self.image_format))
        mapper = copy.copy(self)
        mapper.augmentations = T.AugmentationList([first, *self.augmentations.augs])
        return DatasetMapper.__call__(mapper, dataset_dict)


def read_image(dataset_dict: dict[str, Any], format: str) -> np.ndarray:
    """Return the image of a dataset dict, corrupted where the dict asks for it.

    Args:
        dataset_dict: has "file_name" and may have "corruption".
        format: "RGB", "BGR" or "L". Without a corruption, any format of Detectron2.

    Returns:
        (H, W, 3) uint8, or (H, W, 1) for "L", turned upright where the file's EXIF data say how.

    Raises:
        ValueError: see `corrupt`; or an unknown format.
    """
    return corrupted(utils.read_image(dataset_dict["file_name"], format), dataset_dict, format)


def corrupted(image: np.ndarray, dataset_dict: dict[str, Any], format: str) -> np.ndarray:
    """Return `image`, corrupted where `dataset_dict` asks for it; errors as in `read_image`."""
    if "corruption" not in dataset_dict:
        return image
    corruption, severity = dataset_dict["corruption"]
    parts = Path(dataset_dict["file_name"]).parts[-2:]  # the same wherever the dataset lies
    seed = zlib.crc32("/".join([*parts, corruption, str(severity)]).encode())
    if format == "RGB":
        return corrupt(image, corruption, severity, seed=seed)
    if format == "BGR":
        return corrupt(image[:, :, ::-1], corruption, severity, seed=seed)[:, :, ::-1].copy()
    if format == "L":
        rgb = corrupt(np.repeat(image, 3, axis=2), corruption, severity, seed=seed)
        return np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None]
    raise ValueError(f"INPUT.FORMAT is {format!r}; corrupted images are RGB, BGR or L")
