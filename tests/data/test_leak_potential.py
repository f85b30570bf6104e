"""What companions tell, on generated data with known answers."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from bn_detect.commands.main import main
from bn_detect.data import DatasetError
from bn_detect.data.leak_potential import (
    companion_counts,
    cross_validated,
    leak_potential,
    potential_table,
)


@pytest.fixture
def register(tmp_path):
    """Register images of squares of given classes; grey says the class of a share of them."""
    names = []

    def add(images: list[list[int]], *, evidence: float = 0.0, classes: int = 3) -> str:
        rng = np.random.default_rng(0)
        dicts = []
        for number, labels in enumerate(images):
            pixels = rng.integers(90, 110, (20, 20 * len(labels) or 20, 3), dtype=np.uint8)
            boxes = []
            for place, label in enumerate(labels):
                shown = label if rng.random() < evidence else rng.integers(classes)
                pixels[4:16, 20 * place + 4 : 20 * place + 16] = 60 * shown + 30
                box = [20 * place + 4, 4, 20 * place + 16, 16]
                boxes.append({"bbox": box, "bbox_mode": 0, "category_id": label})
            file = tmp_path / f"{len(names)}_{number}.png"
            Image.fromarray(pixels).save(file)
            size = {"height": 20, "width": pixels.shape[1]}
            dicts.append({"file_name": str(file), "image_id": number, "annotations": boxes, **size})
        name = f"potential_{len(names)}"
        names.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(thing_classes=[str(c) for c in range(classes)])
        return name

    return add


def test_companions_of_one_class_tell_all(register):
    name = register([[number % 3] * 4 for number in range(60)], evidence=0.5)
    found = leak_potential(name)
    assert (found.images, found.objects, found.classes, found.alone) == (60, 240, 3, 0)
    prior, companions = found.guesses["prior"], found.guesses["companions"]
    assert prior.bits == pytest.approx(np.log2(3), abs=0.1)
    assert companions.accuracy == 1 and companions.told > 1.3
    weak = found.guesses["itself, weakly"]
    assert 0.45 < weak.accuracy < 0.85 and 0 < weak.told < companions.told
    assert found.guesses["both"].accuracy > 0.98
    low, high = companions.told_interval
    assert low <= companions.told <= high and high - low < 0.5
    assert leak_potential(name) == found


def test_companions_at_random_tell_nothing(register):
    rng = np.random.default_rng(1)
    name = register([rng.integers(3, size=4).tolist() for _ in range(150)], evidence=1.0)
    found = leak_potential(name).guesses
    assert abs(found["companions"].told) < 0.1
    assert found["companions"].told_interval[0] < 0.05
    assert found["itself, weakly"].accuracy > 0.95


def test_one_class_cannot_leak(register):
    found = leak_potential(register([[0, 0]] * 6, classes=1))
    assert all(guess.told == 0 and guess.accuracy == 1 for guess in found.guesses.values())
    assert "1 classes" in potential_table(found)


def test_companions_are_the_others_of_the_image():
    label, image = np.array([0, 1, 1, 2, 0]), np.array([0, 0, 0, 1, 2])
    counts = companion_counts(label, image, 3)
    assert counts.tolist() == [[0, 2, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_guesses_are_made_on_held_out_folds():
    """Features that name the object, not its class, tell nothing about other objects."""
    rng = np.random.default_rng(0)
    label, fold = rng.integers(2, size=60), np.arange(60) % 5
    right, bits = cross_validated(np.eye(60), np.zeros((60, 0)), label, fold, 2)
    assert right.mean() < 0.7 and bits.mean() > 0.9


def test_mistakes(register):
    with pytest.raises(DatasetError, match="'nothing_here' is not registered"):
        leak_potential("nothing_here")
    with pytest.raises(DatasetError, match="2 images have objects"):
        leak_potential(register([[0], [1], [], []]))


def test_command(register, capsys):
    name = register([[number % 3] * 3 for number in range(12)])
    assert main(["data", "leak-potential", name]) == 0
    printed = capsys.readouterr().out
    assert f"{name}: 36 objects of 3 classes on 12 images" in printed
    assert "companions" in printed and "bits told" in printed
    assert main(["data", "leak-potential", "nothing_here"]) == 2
    assert "'nothing_here' is not registered" in capsys.readouterr().err
