"""Blood cells, from a small source of the same form that is drawn here."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image, ImageDraw

from bn_detect.data import DatasetError, check_dataset, prepare_dataset, register_dataset
from bn_detect.data.datasets.blood_cells import CLASSES, RARE, validation_blocks
from bn_detect.data.datasets.sources import chula_rbc12
from bn_detect.data.datasets.sources.blood_cell_boxes import find_cells
from bn_detect.data.datasets.sources.chula_rbc12 import CELLS, opened, parse_points

from .test_leaky_shapes import digest

RADIUS = 18
OPTIONS = {"block": 2, "val_fraction": 0.5, "min_cells": 4}


def draw_smear(centres) -> Image.Image:
    image = Image.new("RGB", (640, 480), (200, 190, 195))
    draw = ImageDraw.Draw(image)
    for x, y in centres:
        draw.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), (150, 80, 110))
    return image


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """Eight photographs of twelve cells; in the last, half of the cells have no label."""
    folder = tmp_path / "source"
    for part in ("Dataset", "Label"):
        (folder / part).mkdir(parents=True)
    (folder / "LICENSE").write_text("MIT License")
    centres = [(x, y) for y in (70, 170, 310, 410) for x in (80, 240, 400, 560)]
    paths = ["LICENSE"]
    for number in range(1, 9):
        kind = CELLS.index(CLASSES[number % 2])
        lines = [f"{x} {y} {kind}" for x, y in centres]
        lines[0] = f"{centres[0][0]} {centres[0][1]} {CELLS.index(RARE[0])}"
        if number == 8:
            lines = lines[::2]
        paths += [f"Dataset/{number}.jpg", f"Label/{number}.txt"]
        draw_smear(centres).save(folder / paths[-2], quality=95)
        (folder / paths[-1]).write_text("\n".join(lines) + "\n")
    sums = {p: hashlib.sha256((folder / p).read_bytes()).hexdigest() for p in paths}
    monkeypatch.setattr(chula_rbc12, "manifest", lambda: sums)
    yield folder
    register_dataset("blood_cells")


def test_tiles_have_a_box_for_each_cell(source, tmp_path):
    options = {**OPTIONS, "source": str(source)}
    assert prepare_dataset("blood_cells", options, root=tmp_path)
    for split in ("train", "val"):
        summary = check_dataset(f"blood_cells_{split}")
        assert summary.images % 4 == 0 and summary.categories == len(CLASSES)
        coco = json.loads(Path(MetadataCatalog.get(f"blood_cells_{split}").json_file).read_text())
        assert {image["width"] for image in coco["images"]} == {160}
        assert all(image["photograph"] != 8 for image in coco["images"])  # half labelled
        for annotation in coco["annotations"]:
            _x, _y, width, height = annotation["bbox"]
            assert abs(width - RADIUS) < 3 and abs(height - RADIUS) < 3  # at half size
            assert annotation["iscrowd"] == (annotation["cell"] in RARE)
            if not annotation["iscrowd"]:
                assert CLASSES[annotation["category_id"] - 1] == annotation["cell"]
        assert {a["cell"] for a in coco["annotations"]} >= set(CLASSES[:2])
    folder = tmp_path / "blood_cells"
    assert "arXiv:2012.01321" in (folder / "SOURCE.md").read_text()
    assert (folder / "LICENSE").read_text() == "MIT License"


def test_a_zip_file_gives_the_same_as_a_folder(source, tmp_path):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(source.rglob("*.*")) + [source / "LICENSE"]:
            file.write(path, f"Chula-RBC-12-Dataset-fa13/{path.relative_to(source)}")
    for name, place in (("folder", source), ("zip", archive)):
        prepare_dataset("blood_cells", {**OPTIONS, "source": str(place)}, root=tmp_path / name)
    one, two = (tmp_path / name / "blood_cells" for name in ("folder", "zip"))
    assert digest(one) == digest(two)


def test_the_same_stain(source, tmp_path):
    options = {**OPTIONS, "source": str(source), "same_stain": True}
    prepare_dataset("blood_cells", options, root=tmp_path)
    files = sorted((tmp_path / "blood_cells/train").iterdir())
    means = [np.asarray(Image.open(file)).mean((0, 1)) for file in files]
    assert np.abs(np.array(means) - (180, 160, 175)).max() < 10


def test_touching_cells_are_divided_and_a_point_beside_all_gets_the_usual_size():
    centres = [(100, 100), (100 + 2 * RADIUS - 4, 100), (300, 300), (500, 100)]
    points = np.array([*centres[:3], (450, 400)], dtype=float)
    cells = find_cells(np.asarray(draw_smear(centres)), points)
    sides = cells.boxes[:, 2:] - cells.boxes[:, :2]
    assert np.abs(sides - 2 * RADIUS).max() < 8
    middles = (cells.boxes[:, 2:] + cells.boxes[:, :2]) / 2
    assert np.abs(middles - points).max() < 4
    assert cells.labelled.tolist().count(False) == 1
    assert cells.coverage((0, 0, 640, 480), 12) == pytest.approx(3 / 4, abs=0.05)
    assert cells.coverage((0, 200, 640, 480), 12) == 1


def test_each_class_is_on_both_sides():
    counts = [np.array(c) for c in ([5, 0], [0, 5], [9, 0], [0, 1], [3, 3])]
    chosen = validation_blocks(np.arange(5), counts, 0.4)
    sums = sum(counts[block] for block in chosen)
    assert len(chosen) == 2 and (sums > 0).all() and (sums < (17, 9)).all()
    assert validation_blocks(np.arange(5), counts, 0.4) == chosen
    with pytest.raises(DatasetError, match="both|training and validation"):
        validation_blocks(np.arange(2), counts[:2], 0.5)


FAULTS = {
    "absent": (lambda s: shutil.rmtree(s), "no such folder or zip file"),
    "a file is missing": (lambda s: (s / "Label/3.txt").unlink(), r"Label/3\.txt cannot be read"),
    "a file is another": (
        lambda s: (s / "Dataset/2.jpg").write_bytes(b"x"),
        r"Dataset/2\.jpg: sha256 is",
    ),
    "no zip file": (
        lambda s: (shutil.rmtree(s), s.write_text("no zip")),
        "cannot be read as a zip file",
    ),
    "another zip file": (
        lambda s: (shutil.rmtree(s), zipfile.ZipFile(s, "w").writestr("x", "y")),
        "cannot be read as|does not hold LICENSE",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_source_is_refused(fault, source, tmp_path):
    spoil, message = FAULTS[fault]
    spoil(source)
    with pytest.raises(DatasetError, match=message):
        prepare_dataset("blood_cells", {**OPTIONS, "source": str(source)}, root=tmp_path)
    assert not (tmp_path / "blood_cells").exists()


@pytest.mark.parametrize("text", ["1 2", "1 2 x", "1 2 13", "1 2 0.5"])
def test_faulty_labels(text):
    with pytest.raises(DatasetError, match=r"Label/1\.txt"):
        parse_points(text.encode(), "Label/1.txt")


def test_a_failing_download_says_what_to_do(monkeypatch):
    monkeypatch.setattr(chula_rbc12, "ARCHIVE", "http://127.0.0.1:9/archive.zip")
    with pytest.raises(DatasetError, match="cannot download http.*--from PATH"), opened():
        pass


def test_the_manifest_lists_photographs_and_labels():
    sums = chula_rbc12.manifest()
    assert len(sums) == 1243 and all(len(value) == 64 for value in sums.values())
    numbers = {Path(p).stem for p in sums if p.startswith("Label/")}
    assert numbers == {Path(p).stem for p in sums if p.startswith("Dataset/")}
    assert "LICENSE" in sums
