"""The check of datasets that have no COCO JSON."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from bn_detect.data import DatasetError, check_dataset
from tests.data.small_dataset import small_dataset


def record(folder, **changes):
    annotation = {"bbox": [0, 0, 10, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    annotation.update(changes)
    file_name = str(folder / "images/0.png")
    image = {"file_name": file_name, "image_id": "a", "width": 40, "height": 30}
    return {**image, "annotations": [annotation]}


@pytest.fixture
def register_dicts(tmp_path):
    """Registers a loader of dataset dicts under the name "dicts"."""
    small_dataset(tmp_path)

    def register(load):
        DatasetCatalog.register("dicts", load)
        MetadataCatalog.get("dicts").thing_classes = ["cat"]

    return register


DICT_FAULTS = {
    "outside": ({"bbox": [0, 0, 50, 10]}, "box [0, 0, 50, 10] (x, y, width, height) is outside"),
    "no area": ({"bbox": np.array([5, 5, 5, 10])}, "has no positive area"),
    "three": ({"bbox": [5, 5, 5], "bbox_mode": BoxMode.XYWH_ABS}, "must be 4 finite numbers"),
    "category": ({"category_id": 1}, "category_id 1 is not listed"),
    "category type": ({"category_id": "cat"}, "'category_id' must be an integer, got 'cat'"),
}


@pytest.mark.parametrize("fault", DICT_FAULTS)
def test_faulty_dicts(tmp_path, register_dicts, fault):
    changes, message = DICT_FAULTS[fault]
    register_dicts(lambda: [record(tmp_path, **changes)])
    with pytest.raises(DatasetError, match="^dataset 'dicts': 1 fault: annotation '#0 of a'") as e:
        check_dataset("dicts")
    assert message in str(e.value)


def test_good_dicts(tmp_path, register_dicts):
    bare = {"file_name": str(tmp_path / "images/1.png"), "image_id": "b"}
    rotated = record(tmp_path, bbox=[5, 5, 4, 4, 30.0], bbox_mode=BoxMode.XYWHA_ABS)
    rotated.update(image_id="c")
    register_dicts(lambda: [record(tmp_path), bare, rotated])
    summary = check_dataset("dicts")
    assert (summary.images, summary.annotations, summary.size_quartiles[0]) == (3, 2, 10)


def test_dicts_with_a_missing_image_or_a_failing_loader(tmp_path, register_dicts):
    records = [{"file_name": str(tmp_path / "gone.png")}]

    def load():
        return records if records else 1 / 0

    register_dicts(load)
    with pytest.raises(DatasetError, match=r"image 0 \(.*gone\.png\) is missing"):
        check_dataset("dicts")
    records.clear()
    with pytest.raises(DatasetError, match="'dicts' cannot be loaded: ZeroDivisionError"):
        check_dataset("dicts")
