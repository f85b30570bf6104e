"""Batches of registered datasets, and how many of a loader are taken."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from bn_detect.probes import probe_loader
from bn_detect.probes.batches import take
from tests.helpers.coco_folder import OBJECTS_PER_IMAGE, make_coco_folder

NAME = "probes_test_train"


@pytest.fixture(scope="module")
def cfg(tmp_path_factory) -> CfgNode:
    folder = make_coco_folder(tmp_path_factory.mktemp("data"), 7, keypoints=False)
    annotations = str(folder / "annotations/instances_train2017.json")
    register_coco_instances(NAME, {}, annotations, str(folder / "train2017"))
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 32, 100
    cfg.INPUT.CROP.ENABLED = True  # in training only
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_the_same_images_in_every_pass(cfg):
    loader = probe_loader(cfg, NAME, 3)
    passes = [[x for batch in loader for x in batch] for _ in range(2)]
    assert len(loader) == 2 and [len(batch) for batch in loader] == [3, 3]
    names = [[x["file_name"] for x in images] for images in passes]
    assert names[0] == names[1] and len(set(names[0])) == 6
    for a, b in zip(*passes, strict=True):
        assert torch.equal(a["image"], b["image"]) and a["image"].shape == (3, 32, 48)
        assert len(a["instances"]) == OBJECTS_PER_IMAGE and (a["height"], a["width"]) == (64, 96)
    other = [x["file_name"] for batch in probe_loader(cfg, NAME, 3, seed=1) for x in batch]
    assert other != names[0]


@pytest.mark.parametrize("images", [0, 8])
def test_batches_that_cannot_be_filled(cfg, images):
    with pytest.raises(ValueError, match=f"images_per_batch is {images}, but {NAME} has 7 images"):
        probe_loader(cfg, NAME, images)


def test_take():
    assert list(take("abcd", 3, "test")) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="ended after 2 of num_batches = 3"):
        list(take("ab", 3, "test"))
