"""The mapper of classification data: turn a dataset dict into an input of `BNImageClassifier`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from torchvision.transforms import v2

from .mapper import corrupted
from .rendering import Rendering


class ClassificationMapper:
    """Read an image, crop it, flip it, corrupt it where its dict asks for it, and render it.

    With `INPUT.CROP.ENABLED` a training image is a random part of 8 to 100% of the area at an
    aspect ratio of 3/4 to 4/3 (Szegedy et al. 2015), resized to `INPUT.CROP.SIZE`. A test image is
    resized to a short edge of `INPUT.MIN_SIZE_TEST`, and its centre of `INPUT.CROP.SIZE` is taken.
    Without cropping, images stay as they are. `INPUT.RANDOM_FLIP` "horizontal" flips a training
    image with probability 1/2. Corruptions come after that, as in ImageNet-C, at the size that the
    model sees; `INPUT.RENDERING` then renders the image (see `Rendering`).

    Args:
        cfg: a config with `INPUT.FORMAT` and the keys above.
        is_train: whether to return training images; False returns test images.

    Attributes:
        read: from a dataset dict to its image, (H, W, C); a test image, of which nothing is random,
            is cropped and corrupted already. May be replaced by one that keeps the images.
    """

    def __init__(self, cfg: CfgNode, is_train: bool) -> None:
        self.read: Callable[[dict[str, Any]], np.ndarray] = self._read
        self._format, self._is_train = cfg.INPUT.FORMAT, is_train
        self._rendering = Rendering.from_config(cfg)
        steps = []
        if cfg.INPUT.CROP.ENABLED:
            size = [int(side) for side in cfg.INPUT.CROP.SIZE]
            if is_train:
                steps.append(v2.RandomResizedCrop(size, antialias=True))
            else:
                steps += [v2.Resize(cfg.INPUT.MIN_SIZE_TEST, antialias=True), v2.CenterCrop(size)]
        if is_train and cfg.INPUT.RANDOM_FLIP == "horizontal":
            steps.append(v2.RandomHorizontalFlip())
        self._transform = v2.Compose(steps) if steps else None

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Return `dataset_dict` with the key "image" added: (C, H, W) uint8, rendered: float32."""
        image = self.read(dataset_dict)
        if self._is_train:
            image = self._transformed(image, dataset_dict)
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        if self._rendering is not None:
            tensor = self._rendering(tensor, dataset_dict, self._is_train)
        return {**dataset_dict, "image": tensor}

    def _read(self, dataset_dict: dict[str, Any]) -> np.ndarray:
        image: np.ndarray = detection_utils.read_image(dataset_dict["file_name"], self._format)
        return image if self._is_train else self._transformed(image, dataset_dict)

    def _transformed(self, image: np.ndarray, dataset_dict: dict[str, Any]) -> np.ndarray:
        if self._transform is not None:
            tensor = self._transform(torch.from_numpy(image.transpose(2, 0, 1).copy()))
            image = tensor.numpy().transpose(1, 2, 0)
        return corrupted(image, dataset_dict, self._format)
