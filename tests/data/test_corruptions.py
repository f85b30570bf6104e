"""Corruptions: all run, depend on their arguments alone, and leave nothing behind."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from bn_detect.data import CORRUPTIONS, corrupt

RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
}


def picture(height: int = 48, width: int = 56) -> np.ndarray:
    """Smooth gradients with an edge: every corruption changes something."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([255 * x / width, 255 * y / height, 80 + 100 * (x > y)], axis=-1)
    return image.astype(np.uint8)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_is_a_function_of_its_arguments(corruption):
    image = picture()
    before = np.random.get_state()[1].copy(), image.copy()
    once, again, other = (corrupt(image, corruption, 3, seed=seed) for seed in (1, 1, 2))
    assert once.shape == image.shape and once.dtype == np.uint8
    assert (once == again).all() and (once != image).any()
    assert (once != other).any() == (corruption in RANDOM)
    assert (np.random.get_state()[1] == before[0]).all() and (image == before[1]).all()


# Not of motion_blur, whose angle decides, and glass_blur, which at 5 repeats less than at 3.
@pytest.mark.parametrize(
    "corruption", [c for c in CORRUPTIONS if c[:6] not in ("motion", "glass_")]
)
def test_severity_1_is_milder_than_5(corruption):
    image = picture().astype(float)
    mild, severe = (
        np.mean([abs(corrupt(picture(), corruption, severity, seed=s) - image) for s in range(3)])
        for severity in (1, 5)
    )
    assert 0 < mild < severe


def test_contrast_is_what_its_definition_says():
    image = picture()
    mean = image.mean(axis=(0, 1))
    expected = mean + 0.2 * (image - mean)  # severity 3
    assert abs(corrupt(image, "contrast", 3, seed=0) - expected).max() <= 1


def test_gaussian_noise_has_its_spread():
    image = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupt(image, "gaussian_noise", 1, seed=0).astype(float) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.02) and abs(noise.mean() + 0.5) < 0.3


def test_threads_do_not_disturb_one_another():
    expected = [corrupt(picture(), "gaussian_noise", 1, seed=seed) for seed in range(8)]
    found = [None] * 8

    def work(seed: int) -> None:
        for _ in range(5):
            found[seed] = corrupt(picture(), "gaussian_noise", 1, seed=seed)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((a == b).all() for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("corruption", "severity", "image", "said"),
    [
        ("rain", 3, picture(), "'rain'; it must be one of gaussian_noise, "),
        ("fog", 0, picture(), "severity of fog is 0; it must be 1 to 5"),
        ("fog", 3, picture(31, 40), "the image is 40x31 px; corruptions need at least 32 px"),
        ("fog", 3, picture().astype(np.float32), "expected an .H, W, 3. uint8 image"),
    ],
)
def test_mistakes(corruption, severity, image, said):
    with pytest.raises(ValueError, match=said):
        corrupt(image, corruption, severity, seed=0)


@pytest.mark.parametrize("there", [None, SimpleNamespace(corruptions=SimpleNamespace())])
def test_without_the_library(there, monkeypatch):
    """None: it is not installed. An empty one: its predecessor of the same name is."""
    monkeypatch.setitem(sys.modules, "imagecorruptions", there)
    monkeypatch.delitem(sys.modules, "imagecorruptions.corruptions", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'bn_detect\[corruptions\]'"):
        corrupt(picture(), "fog", 3, seed=0)
