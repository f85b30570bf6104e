"""Whose registration a name keeps."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from bn_detect.data import register_image_folders
from bn_detect.data.registration import register_boxes
from tests.helpers.fresh_process import python

IMPORT_AFTER = """
from detectron2.data import DatasetCatalog, MetadataCatalog
names = ["imagenet_val", "digits_train", "neon_trees_val", "leaky_shapes_train"]
for name in names:
    DatasetCatalog.register(name, lambda: [name])
    MetadataCatalog.get(name).thing_classes = ["mine"]
import bn_detect
for name in names:
    assert DatasetCatalog.get(name) == [name], name
    assert MetadataCatalog.get(name).as_dict() == {"name": name, "thing_classes": ["mine"]}, name
assert "imagenet_train" in DatasetCatalog and "neon_trees_train" in DatasetCatalog
"""


def test_an_import_leaves_datasets_that_have_its_names():
    python("-c", IMPORT_AFTER)


@pytest.fixture
def foreign():
    DatasetCatalog.register("foreign_val", lambda: ["theirs"])
    return "foreign_val"


def test_a_foreign_registration_is_replaced_when_asked(foreign, tmp_path):
    register_boxes("foreign", tmp_path / "foreign", replace=False)
    register_image_folders(foreign, tmp_path, replace=False)
    assert DatasetCatalog.get(foreign) == ["theirs"]
    register_boxes("foreign", tmp_path / "foreign")
    assert MetadataCatalog.get(foreign).json_file == str(
        tmp_path / "foreign/annotations/foreign_val.json"
    )
    register_image_folders(foreign, tmp_path)
    assert MetadataCatalog.get(foreign).evaluator_type == "classification"
