"""The digits of MNIST, from a wheel that is made here: nothing is downloaded."""

import gzip
import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from bn_detect.data import DatasetError, prepare_dataset, register_dataset
from bn_detect.data.datasets import mnist

PER_CLASS = 3


@pytest.fixture
def digits() -> np.ndarray:
    """(30, 785) grey levels and class, the classes one after another as in the real file."""
    pixels = np.random.default_rng(0).integers(0, 256, (10 * PER_CLASS, mnist.SIDE**2))
    return np.column_stack([pixels, np.repeat(np.arange(10), PER_CLASS)])


@pytest.fixture
def wheel(digits, tmp_path, monkeypatch):
    path = tmp_path / "wheel.whl"
    lines = "\n".join(",".join(map(str, row)) for row in digits)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(mnist.FILE, gzip.compress(lines.encode()))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(mnist, "WHEEL", replace(mnist.WHEEL, sha256=sha256))
    yield path
    register_dataset("mnist")


def test_digits_are_those_of_the_wheel_with_a_margin(wheel, digits, tmp_path):
    options = {"source": str(wheel), "train_images": 20}
    assert prepare_dataset("mnist", options, root=tmp_path / "data")
    assert not prepare_dataset("mnist", options, root=tmp_path / "data")
    splits = [DatasetCatalog.get(f"mnist_{split}") for split in ("train", "val")]
    assert [len(dicts) for dicts in splits] == [20, 10]
    for number, dicts in enumerate(splits):
        for d in dicts:
            row = int(d["image_id"].split("/")[1].removesuffix(".png"))
            assert d["label"] == digits[row, -1]
            assert (row % PER_CLASS >= 2) == bool(number)
            with Image.open(d["file_name"]) as image:
                assert image.mode == "L"
                padded = np.asarray(image)
            assert padded.shape == (32, 32)
            assert np.array_equal(padded[2:-2, 2:-2].ravel(), digits[row, :-1])
            assert padded.sum() == digits[row, :-1].sum()


def test_another_wheel_is_refused(wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(DatasetError, match="sha256"):
        prepare_dataset("mnist", {"source": str(wheel)}, root=tmp_path / "data")
    assert not (tmp_path / "data" / "mnist").exists()


@pytest.mark.parametrize("images", [0, 15, 5000])
def test_a_number_of_images_that_cannot_be_is_refused(images, tmp_path):
    with pytest.raises(ValueError, match="train_images"):
        prepare_dataset("mnist", {"train_images": images}, root=tmp_path)
