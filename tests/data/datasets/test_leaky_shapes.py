"""The generated dataset: the same each time, valid, and with the dials it says it has."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from bn_detect.data import (
    DatasetError,
    check_dataset,
    prepare_dataset,
    register_dataset,
    register_derived,
)
from bn_detect.data.datasets.leaky_shapes import LeakyShapesOptions, draw_image

SMALL = {"images": 12, "val_images": 5}


def digest(folder: Path) -> str:
    """Of every file's name and bytes."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sha.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return sha.hexdigest()


@pytest.fixture(autouse=True)
def usual_place():
    yield
    register_dataset("leaky_shapes")


def test_the_same_options_give_the_same_files(tmp_path):
    assert prepare_dataset("leaky_shapes", SMALL, root=tmp_path / "a")
    assert prepare_dataset("leaky_shapes", SMALL, root=tmp_path / "b")
    assert not prepare_dataset("leaky_shapes", SMALL, root=tmp_path / "a")  # it is there
    assert digest(tmp_path / "a/leaky_shapes") == digest(tmp_path / "b/leaky_shapes")
    other = {**SMALL, "seed": 1}
    with pytest.raises(DatasetError, match=r"seed=0 .*, not with .*seed=1 .*--force rebuilds it"):
        prepare_dataset("leaky_shapes", other, root=tmp_path / "a")
    assert prepare_dataset("leaky_shapes", other, root=tmp_path / "a", force=True)
    assert digest(tmp_path / "a/leaky_shapes") != digest(tmp_path / "b/leaky_shapes")


def test_an_image_does_not_depend_on_how_many_there_are():
    few, many = LeakyShapesOptions(images=4), LeakyShapesOptions(images=400)
    for split in ("train", "val"):
        (a, objects), (b, others) = draw_image(few, split, 3), draw_image(many, split, 3)
        assert np.array_equal(a, b) and objects == others
    assert draw_image(few, "train", 3)[1] != draw_image(few, "val", 3)[1]


def test_it_is_a_valid_dataset_that_a_later_process_finds_by_its_record(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepare_dataset("zero_leak", {"kind": "leaky_shapes", "correlation": 0, **SMALL})
    summary = check_dataset("zero_leak_train")
    assert (summary.images, summary.categories, summary.ignored) == (12, 4, 0)
    assert (tmp_path / "zero_leak/overview_val.png").stat().st_size > 10_000
    for split in ("train", "val"):  # as in a process that has only imported bn_detect
        DatasetCatalog.remove(f"zero_leak_{split}")
        MetadataCatalog.remove(f"zero_leak_{split}")
    register_derived(["zero_leak_val@3", "zero_leak_test", "absent_val"])
    assert check_dataset("zero_leak_val@3").images == 3
    assert "zero_leak_test" not in DatasetCatalog and "absent_val" not in DatasetCatalog


def test_the_number_of_objects_may_tell_the_class():
    options = LeakyShapesOptions(number_cue=1.0, classes=3, min_objects=2, max_objects=8)
    numbers: dict[int, set[int]] = {}
    for number in range(150):
        objects = draw_image(options, "train", number)[1]
        numbers.setdefault(objects[0]["category_id"], set()).add(len(objects))
    assert numbers == {1: {2, 3}, 2: {4, 5}, 3: {6, 7, 8}}
    with pytest.raises(ValueError, match=r"classes must be in \[2, 2\], got 4"):
        LeakyShapesOptions(number_cue=0.1, min_objects=7, max_objects=8)


def test_a_cast_shifts_all_pixels_alike():
    plain, cast = LeakyShapesOptions(noise=0), LeakyShapesOptions(noise=0, cast=10.0)
    shifts = []
    for number in range(40):
        before, objects = draw_image(plain, "val", number)
        after, same = draw_image(cast, "val", number)
        assert objects == same
        change = np.asarray(after).astype(int) - np.asarray(before)
        assert np.ptp(change, axis=(0, 1)).max() <= 1  # but for rounding
        shifts.append(change.mean((0, 1)))
    assert 8 < np.std(shifts) < 12 and abs(np.corrcoef(np.transpose(shifts))[0, 1]) < 0.5


def test_dials_that_are_off_are_not_in_the_record():
    assert not {"cast", "number_cue"} & LeakyShapesOptions().recorded().keys()
    assert LeakyShapesOptions(cast=3.0).recorded()["cast"] == 3.0


def _objects(options: LeakyShapesOptions, images: int) -> list[tuple[np.ndarray, list[dict]]]:
    drawn = [draw_image(options, "train", number) for number in range(images)]
    return [(np.asarray(image), objects) for image, objects in drawn]


def _seen_class(pixels: np.ndarray, box: list[float], classes: int) -> int:
    """The class whose hue the middle of the box has, from its pixels alone."""
    x, y, width, height = (int(v) for v in box)
    middle = pixels[y + height // 3 : y + 2 * height // 3, x + width // 3 : x + 2 * width // 3]
    red, green, blue = middle.reshape(-1, 3).mean(0)
    angle = np.arctan2((red + green - 2 * blue) / 6**0.5, (red - green) / 2**0.5)
    return round(angle / (2 * np.pi / classes)) % classes + 1


@pytest.mark.parametrize("own_evidence", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 4, 20])
def test_own_evidence_classifies_as_stated(own_evidence, classes):
    options = LeakyShapesOptions(own_evidence=own_evidence, classes=classes)
    shown, right = [], []
    for pixels, objects in _objects(options, 150):
        for each in objects:
            seen = _seen_class(pixels, each["bbox"], classes)
            shown.append(seen == each["shown"])
            right.append(seen == each["category_id"])
    assert np.mean(shown) > 0.995  # the colour is easily read
    expected = own_evidence + (1 - own_evidence) / classes
    assert np.mean(right) == pytest.approx(expected, abs=0.06)  # 4 sigma of 970 objects


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("own_evidence", [0.5, 1.0])
def test_a_companion_classifies_as_stated(correlation, own_evidence):
    """Guessing the class from the colour of one other object of the image."""
    options = LeakyShapesOptions(correlation=correlation, own_evidence=own_evidence)
    right = [
        np.mean([a["category_id"] == b["shown"] for a, b in permutations(objects, 2)])
        for _, objects in _objects(options, 250)
    ]
    expected = 1 / 4 + (1 - 1 / 4) * correlation**2 * own_evidence
    assert np.mean(right) == pytest.approx(expected, abs=4 * np.std(right) / 250**0.5)


def test_objects_lie_apart_inside_the_image():
    for _, objects in _objects(LeakyShapesOptions(), 50):
        boxes = np.array([o["bbox"] for o in objects])
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        assert 5 <= len(boxes) <= 8 and corners.min() >= 0 and corners.max() <= 128
        for i, a in enumerate(corners):
            for b in corners[:i]:
                assert (a[2:] <= b[:2]).any() or (b[2:] <= a[:2]).any()


@pytest.mark.parametrize(
    ("dial", "message"),
    [
        ({"correlation": 1.5}, r"correlation must be in \[0, 1\], got 1.5"),
        ({"own_evidence": -0.1}, r"own_evidence must be in \[0, 1\], got -0.1"),
        ({"classes": 1}, r"classes must be in \[2, 20\], got 1"),
        ({"max_objects": 10}, r"max_objects must be in \[1, 9\], got 10"),
        ({"min_objects": 9}, r"min_objects must be in \[1, 8\], got 9"),
        ({"max_side": 60}, r"max_side must be in \[6, 40\], got 60"),
        ({"images": 0}, r"images must be in \[1, 1000000\], got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_dials_out_of_range(dial, message):
    with pytest.raises(ValueError, match=message):
        LeakyShapesOptions(**dial)


def test_a_killed_preparation_leaves_nothing_half_made(tmp_path):
    tool = Path(__file__).parents[3] / "tools/prepare_data.py"
    command = [sys.executable, str(tool), "leaky-shapes", "--root", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--images", "100000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    building = tmp_path / ".leaky_shapes.building/train"
    deadline = time.monotonic() + 300
    while not (building.is_dir() and len(os.listdir(building)) > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "leaky_shapes").exists()
    few = ["--images", "6", "--val-images", "3"]
    printed = subprocess.run([*command, *few], capture_output=True, text=True, check=True).stdout
    assert "prepared" in printed and "leaky_shapes_train" in printed
    coco = json.loads((tmp_path / "leaky_shapes/annotations/leaky_shapes_train.json").read_text())
    assert len(coco["images"]) == len(list((tmp_path / "leaky_shapes/train").iterdir())) == 6
