"""A dataset that fits on a screen, for tests to spoil."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from bn_detect.data import DatasetError, DatasetSummary, check_dataset

SERIAL = itertools.count()


def small_dataset(folder: Path) -> dict:
    """Write 3 images of 40x30 px with noise; the COCO JSON of 2 + 1 + 0 boxes on them."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{index}.png")
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)]
    boxes = [(1, 10, 3, [0, 0, 10, 10]), (2, 10, 7, [20, 10, 20, 20]), (3, 11, 3, [5, 5, 4, 9])]
    annotations = [
        {"id": i, "image_id": image, "category_id": c, "bbox": b, "area": 1, "iscrowd": 0}
        for i, image, c, b in boxes
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


class Dataset:
    """A registered COCO-style dataset whose files a test may spoil."""

    def __init__(self, folder: Path) -> None:
        self.name = f"small_{next(SERIAL)}"
        self.folder = folder
        self.coco = small_dataset(folder)
        self.json_file = folder / "small.json"
        self.images = folder / "images"
        register_coco_instances(self.name, {}, str(self.json_file), str(self.images))

    def check(self) -> DatasetSummary:
        self.json_file.write_text(json.dumps(self.coco))
        return check_dataset(self.name)

    def error(self) -> str:
        with pytest.raises(DatasetError) as caught:
            self.check()
        message = str(caught.value)
        assert isinstance(caught.value, ValueError) and "\n" not in message
        assert repr(self.name) in message
        return message
