"""Parts of datasets."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from bn_detect.data import DatasetError, check_dataset, register_derived


@pytest.fixture
def whole(tmp_path):
    name = "subset_test_whole"
    DatasetCatalog.register(name, lambda: [{"image_id": i} for i in range(10)])
    MetadataCatalog.get(name).set(thing_classes=["tree"], json_file="x.json", evaluator_type="coco")
    return name


def test_images_are_spread_evenly_and_metadata_kept(whole):
    register_derived([whole, f"{whole}@4", f"{whole}@4"])
    assert [d["image_id"] for d in DatasetCatalog.get(f"{whole}@4")] == [0, 2, 5, 7]
    metadata = MetadataCatalog.get(f"{whole}@4")
    assert metadata.thing_classes == ["tree"] and metadata.evaluator_type == "coco"
    assert not hasattr(metadata, "json_file")  # it would be the ground truth of all images


def test_a_part_is_left_out(whole):
    register_derived([whole, f"{whole}@-3", f"{whole}@-10"])
    kept = [d["image_id"] for d in DatasetCatalog.get(f"{whole}@-3")]
    chosen = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()[:3]
    assert kept == sorted(set(range(10)) - set(chosen))
    with pytest.raises(ValueError, match="has 10 images only"):
        DatasetCatalog.get(f"{whole}@-10")


@pytest.mark.parametrize("number", ["0", "-0", "--1", "few", ""])
def test_numbers_that_are_none(whole, number):
    with pytest.raises(ValueError, match="stands a number of images, at least 1"):
        register_derived([f"{whole}@{number}"])


def test_more_images_than_there_are(whole):
    register_derived([f"{whole}@11"])
    with pytest.raises(ValueError, match="has 10 images only"):
        DatasetCatalog.get(f"{whole}@11")


def test_part_of_no_dataset():
    register_derived(["subset_test_nothing@3"])
    with pytest.raises(DatasetError, match="subset_test_nothing"):
        check_dataset("subset_test_nothing@3")
