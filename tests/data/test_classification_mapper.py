"""Images of classifiers: what is done to them, in which order."""

import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from bn_detect.configuration.keys import default_config
from bn_detect.data import ClassificationMapper, register_image_folders, write_corrupted
from bn_detect.data.corruptions import corrupt

NOISE = ("gaussian_noise", 3)


@pytest.fixture
def image(tmp_path) -> dict:
    """The dict of a grey image of 200 x 100."""
    path = tmp_path / "class" / "image.png"
    path.parent.mkdir()
    Image.fromarray(np.full((100, 200, 3), 128, np.uint8)).save(path)
    return {"file_name": str(path), "label": 0}


def mapper(is_train: bool) -> ClassificationMapper:
    cfg = default_config()
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TEST = "RGB", "none", 50
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, [40, 40]
    return ClassificationMapper(cfg, is_train)


def test_a_test_image_is_corrupted_after_resizing_and_cropping(image):
    found = mapper(False)({**image, "corruption": NOISE})["image"]
    seed = zlib.crc32(b"class/image.png" + b"/gaussian_noise/3")
    clean = v2.CenterCrop(40)(v2.Resize(50)(torch.full((3, 100, 200), 128, dtype=torch.uint8)))
    expected = corrupt(clean.numpy().transpose(1, 2, 0), *NOISE, seed=seed)
    assert np.array_equal(found.numpy().transpose(1, 2, 0), expected)
    assert torch.equal(mapper(False)(image)["image"], clean)


def test_a_training_image_too_so_that_the_noise_keeps_its_strength(image):
    found = mapper(True)({**image, "corruption": NOISE})["image"]
    assert found.shape == (3, 40, 40)
    assert found.double().std().item() == pytest.approx(0.18 * 255, rel=0.1)


def test_corrupted_images_of_classifiers_are_not_written(image, tmp_path):
    register_image_folders("mapper_test", tmp_path)
    with pytest.raises(ValueError, match="'mapper_test_corrupted_gaussian_noise_3'"):
        write_corrupted("mapper_test", *NOISE)
