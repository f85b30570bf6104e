"""Class-per-folder data, the digits on disk, and the mapper of both."""

import filecmp
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from sklearn.datasets import load_digits

from bn_detect.configuration.keys import default_config
from bn_detect.data import (
    CLASSIFICATION,
    ClassificationMapper,
    DatasetError,
    check_dataset,
    prepare_dataset,
    register_dataset,
    register_derived,
    register_image_folders,
)

from ..image_folders import make_image_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_image_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def dataset(folder):
    register_image_folders("tiny_train", folder / "train")
    return "tiny_train"


def test_labels_are_places_of_the_folders_in_a_fixed_mixed_order(dataset, folder):
    dicts = DatasetCatalog.get(dataset)
    metadata = MetadataCatalog.get(dataset)
    assert metadata.classes == ["class_0", "class_1", "class_2"]
    assert metadata.evaluator_type == CLASSIFICATION
    assert len(dicts) == 18
    for d in dicts:
        assert d["file_name"] == str(folder / "train" / d["image_id"])
        assert d["image_id"].startswith(f"class_{d['label']}/")
    labels = [d["label"] for d in dicts]
    assert labels != sorted(labels)
    assert DatasetCatalog.get(dataset) == dicts
    summary = check_dataset(dataset)
    assert (summary.images, summary.categories) == (18, 3)


def test_faults_of_folders_are_named(dataset, folder, tmp_path):
    register_image_folders(dataset, tmp_path / "nothing")
    with pytest.raises(DatasetError, match="nothing is missing"):
        check_dataset(dataset)
    shutil.copytree(folder / "train", tmp_path / "faulty")
    (tmp_path / "faulty/class_9").mkdir()
    register_image_folders(dataset, tmp_path / "faulty")
    with pytest.raises(DatasetError, match="class_9 has no image"):
        check_dataset(dataset)
    (tmp_path / "faulty/class_9/0.JPEG").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="cannot be read"):
        check_dataset(dataset)


def test_imagenet_lies_where_detectron2_looks(tmp_path):
    try:
        register_dataset("imagenet", root=tmp_path)
        assert MetadataCatalog.get("imagenet_val").image_root == str(tmp_path / "imagenet/val")
        with pytest.raises(DatasetError, match="DETECTRON2_DATASETS"):
            check_dataset("imagenet_val")
    finally:
        register_dataset("imagenet")


def test_digits_are_scikit_learns_and_the_same_each_time(tmp_path):
    try:
        assert prepare_dataset("digits", root=tmp_path / "one")
        assert not prepare_dataset("digits", root=tmp_path / "one")
        dicts = {s: DatasetCatalog.get(f"digits_{s}") for s in ("train", "val")}
        assert prepare_dataset("digits", root=tmp_path / "two")
    finally:
        register_dataset("digits")
    assert (len(dicts["train"]), len(dicts["val"])) == (797, 1000)
    files = [d["image_id"] for d in dicts["val"]]
    same, *_ = filecmp.cmpfiles(
        tmp_path / "one/digits/val", tmp_path / "two/digits/val", files, False
    )
    assert len(same) == 1000

    pixels, labels = load_digits(return_X_y=True)
    for d in (*dicts["train"][:20], *dicts["val"][:20]):
        number = int(d["image_id"].split("/")[1].removesuffix(".png"))
        assert d["label"] == labels[number]
        with Image.open(d["file_name"]) as image:
            assert image.size == (32, 32) and image.mode == "L"
            means = np.asarray(image, float).reshape(8, 4, 8, 4).mean((1, 3))
        correlation = np.corrcoef(means.ravel(), pixels[number])[0, 1]
        assert correlation > 0.95


def config(**keys):
    cfg = default_config()
    cfg.INPUT.FORMAT = "RGB"
    cfg.merge_from_list([x for k, v in keys.items() for x in (k.replace("__", "."), v)])
    return cfg


def test_images_as_they_are(dataset):
    d = DatasetCatalog.get(dataset)[0]
    image = ClassificationMapper(config(INPUT__RANDOM_FLIP="none"), True)(d)["image"]
    with Image.open(d["file_name"]) as file:
        assert torch.equal(image, torch.tensor(np.asarray(file)).permute(2, 0, 1))
    flipped = ClassificationMapper(config(), True)
    torch.manual_seed(0)
    views = [flipped(d)["image"] for _ in range(20)]
    kinds = [torch.equal(v, image) - torch.equal(v, image.flip(2)) for v in views]
    assert {1, -1} == set(kinds)
    assert torch.equal(ClassificationMapper(config(), False)(d)["image"], image)


def test_crops(dataset):
    d = DatasetCatalog.get(dataset)[0]
    keys = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__TYPE": "absolute"}
    cfg = config(**keys, INPUT__CROP__SIZE=[24, 24], INPUT__MIN_SIZE_TEST=40)
    views = [ClassificationMapper(cfg, True)(d)["image"] for _ in range(4)]
    assert all(v.shape == (3, 24, 24) and v.dtype == torch.uint8 for v in views)
    assert not torch.equal(views[0], views[1])
    test = ClassificationMapper(cfg, False)(d)["image"]  # short edge 40 already: only the centre
    with Image.open(d["file_name"]) as file:
        whole = torch.tensor(np.asarray(file)).permute(2, 0, 1)
    assert torch.equal(test, whole[:, 8:32, 12:36])


def test_corrupted_copies_keep_their_labels(dataset):
    name = f"{dataset}_corrupted_contrast_3"
    register_derived([name])
    clean, dark = DatasetCatalog.get(dataset)[0], DatasetCatalog.get(name)[0]
    assert dark["label"] == clean["label"] and dark["corruption"] == ("contrast", 3)
    mapper = ClassificationMapper(config(), False)
    spread = [mapper(d)["image"].float().std() for d in (clean, dark)]
    assert spread[1] < 0.5 * spread[0]
