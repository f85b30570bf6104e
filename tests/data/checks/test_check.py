"""Every fault of a dataset, by its message."""

import json
import logging
import math
import re
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from bn_detect.data import (
    DatasetError,
    check_dataset,
    check_datasets,
    register_dataset,
    summary_table,
)
from tests.helpers.fresh_process import ROOT, python


def test_a_good_dataset_is_summarized(dataset):
    dataset.coco["annotations"].append({**dataset.coco["annotations"][2], "id": 4, "iscrowd": 1})
    summary = dataset.check()
    assert (summary.images, summary.annotations, summary.ignored) == (3, 3, 1)
    assert (summary.categories, summary.empty_images, summary.most_per_image) == (2, 1, 2)
    assert summary.size_quartiles == (6, 8, 10, 15, 20) and summary.warnings == ()
    header, rule, row = summary_table([summary]).splitlines()
    assert row.split() == [
        dataset.name,
        *["3", "1", "3", "1", "2", "1.0", "2", "6", "8", "10", "15", "20"],
    ]
    assert len(header) == len(rule) == len(row)


def spoil_entry(table, index, **values):
    return lambda d: d.coco[table][index].update(values)


def spoil_box(*box):
    return spoil_entry("annotations", 1, bbox=list(box))


CONTENT_FAULTS = {
    "no annotations": (lambda d: d.coco.pop("annotations"), "'annotations' is missing, must be"),
    "wrong table": (lambda d: d.coco.update(images={}), "'images' is a dict, must be a list"),
    "no images": (lambda d: d.coco.update(images=[]), "'images' is empty"),
    "no categories": (lambda d: d.coco.update(categories=[]), "'categories' is empty"),
    "no object": (lambda d: d.coco["images"].insert(1, 5), "image at index 1 is 5, must be an ob"),
    "no width": (lambda d: d.coco["images"][1].pop("width"), "image 11 has no 'width'"),
    "no bbox": (lambda d: d.coco["annotations"][0].pop("bbox"), "annotation 1 has no 'bbox'"),
    "wrong type": (
        spoil_entry("images", 0, width="40"),
        "image 10: 'width' must be an integer, got '40'",
    ),
    "bool": (
        spoil_entry("annotations", 0, category_id=True),
        "annotation 1: 'category_id' must be an integer, got True",
    ),
    "image twice": (spoil_entry("images", 2, id=11), "image id 11 is used 2 times"),
    "annotation twice": (spoil_entry("annotations", 2, id=1), "annotation id 1 is used 2 times"),
    "category twice": (spoil_entry("categories", 0, id=7), "category id 7 is used 2 times"),
    "unknown image": (
        spoil_entry("annotations", 2, image_id=99),
        "annotation 3: image_id 99 is not among the images",
    ),
    "unknown category": (
        spoil_entry("annotations", 2, category_id=5),
        "annotation 3 of image 11 (1.png): category_id 5 is not listed in 'categories'",
    ),
    "no extent": (
        spoil_entry("images", 2, width=0),
        "image 12 (2.png): size 0x30 px is not positive",
    ),
    "three numbers": (
        spoil_box(1, 2, 3),
        "annotation 2 of image 10 (0.png): box [1, 2, 3] must be 4 finite numbers",
    ),
    "not finite": (spoil_box(1, 2, math.nan, 4), "box [1, 2, nan, 4] must be 4 finite numbers"),
    "not numbers": (spoil_box(1, 2, "3", 4), "box [1, 2, '3', 4] must be 4 finite numbers"),
    "no area": (spoil_box(1, 2, 0, 4), "annotation 2 of image 10 (0.png): box [1, 2, 0, 4] has no"),
    "negative": (spoil_box(9, 9, -3, 4), "box [9, 9, -3, 4] has no positive area"),
    "outside": (
        spoil_box(30, 2, 12, 4),
        "box [30, 2, 12, 4] (x, y, width, height) is outside its 40x30 px image",
    ),
    "outside above": (spoil_box(3, -1.5, 12, 4), "box [3, -1.5, 12, 4] (x, y, width, height) is"),
}


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_faulty_content(dataset, fault):
    spoil, message = CONTENT_FAULTS[fault]
    spoil(dataset)
    error = dataset.error()
    assert message in error and str(dataset.json_file) in error


def test_a_pixel_outside_is_rounding(dataset):
    dataset.coco["annotations"][1]["bbox"] = [-1, -1, 42, 32]
    dataset.check()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


IMAGE_FAULTS = {
    "missing": (Path.unlink, "is missing"),
    "truncated": (truncate, "cannot be read: "),
    "no image": (lambda path: path.write_text("hello"), "cannot be read: cannot identify"),
    "other size": (
        lambda path: Image.new("RGB", (30, 40)).save(path),
        "is 30x40 px, the annotations say 40x30",
    ),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_faulty_images(dataset, fault):
    spoil, message = IMAGE_FAULTS[fault]
    spoil(dataset.images / "1.png")
    assert f"1 fault: image 11 ({dataset.images / '1.png'}) {message}" in dataset.error()


def test_a_turned_image_has_the_size_detectron2_reads(dataset):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(dataset.images / "1.jpg", exif=exif)
    dataset.coco["images"][1]["file_name"] = "1.jpg"
    dataset.check()


def test_many_faults_are_counted(dataset):
    for annotation in dataset.coco["annotations"]:
        annotation.update(category_id=1, bbox=[0, 0, 0, 0])
    (dataset.images / "2.png").unlink()
    error = dataset.error()
    assert ": 7 faults: annotation 1 of image 10" in error and error.endswith("; and 2 more")
    assert error.count("; ") == 5


def test_broken_json(dataset):
    dataset.json_file.write_text('{"images": [],\n "annotations": [1 2]}')
    with pytest.raises(DatasetError, match="is not valid JSON: .* at line 2, column 20$"):
        check_dataset(dataset.name)
    dataset.json_file.write_text("[]")
    with pytest.raises(DatasetError, match=r"small\.json must hold an object, found a list"):
        check_dataset(dataset.name)
    dataset.json_file.write_bytes(b"\xff\xfe{")
    with pytest.raises(DatasetError, match=r"small\.json is not valid JSON|cannot be read"):
        check_dataset(dataset.name)


def test_missing_files(dataset):
    with pytest.raises(DatasetError, match=r"JSON file .*small\.json is missing; this is where"):
        check_dataset(dataset.name)
    dataset.images.rename(dataset.folder / "elsewhere")
    assert f"image folder {dataset.images} is missing" in dataset.error()


def test_missing_neon_trees_says_what_to_type(tmp_path):
    register_dataset("neon_trees", root=tmp_path)
    try:
        with pytest.raises(DatasetError, match=f"bn-detect data neon-trees --root {tmp_path}`"):
            check_dataset("neon_trees_val")
    finally:
        register_dataset("neon_trees")


def test_unregistered_names(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=r"'neon_tree_val' is not registered: .*neon_trees_val"):
        check_dataset("neon_tree_val")
    with pytest.raises(DatasetError, match="'xyz' is not registered: prepare or import it"):
        check_dataset("xyz")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "my_own_birds").mkdir()
    (tmp_path / "my_own_birds/prepared.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"did you mean my_own_birds_val"):
        check_dataset("my_own_brids_val")


def test_other_categories_than_registered(dataset):
    MetadataCatalog.get(dataset.name).thing_classes = ["dog", "cat"]
    assert "categories (cat, dog; 2 in all) are not the registered (dog, cat;" in dataset.error()


def test_what_only_evaluation_needs_is_a_warning(dataset, caplog, monkeypatch):
    del dataset.coco["annotations"][1]["area"]
    dataset.coco["annotations"][0]["id"] = 0
    lacking, zero = dataset.check().warnings
    assert lacking.startswith("1 annotations (the first: 2) have no 'area'")
    assert zero.startswith("annotation id 0")
    # Training sets the package's logger up to print by itself; caplog listens at the root.
    monkeypatch.setattr(logging.getLogger("bn_detect"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="bn_detect"):
        check_datasets([dataset.name, dataset.name])
    assert len(caplog.records) == 2 and dataset.name in caplog.text


def test_check_datasets_raises(dataset):
    dataset.json_file.write_text(json.dumps(dataset.coco))
    check_datasets([])
    check_datasets([dataset.name])
    with pytest.raises(DatasetError, match="'nothing' is not registered"):
        check_datasets([dataset.name, "nothing"])


def test_command_line(dataset, monkeypatch):
    """Summaries of the good ones, one line per faulty one, no traceback."""
    dataset.json_file.write_text(json.dumps(dataset.coco))
    (dataset.folder / "faulty.json").write_text("{}")
    register = "register_coco_instances({name!r}, {{}}, {json!r}, {images!r})\n"
    images = str(dataset.images)
    (dataset.folder / "mine.py").write_text(
        "from detectron2.data.datasets import register_coco_instances\n"
        + register.format(name="good", json=str(dataset.json_file), images=images)
        + register.format(name="bad", json=str(dataset.folder / "faulty.json"), images=images)
    )
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{dataset.folder}")
    words = ("check", "--import", "mine", "good", "bad")
    done = python("tools/prepare_data.py", *words, code=2)
    assert re.search(r"^good +3 +1 +3 ", done.stdout, re.MULTILINE)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: dataset 'bad'") and "'images' is missing" in last
    assert "Traceback" not in done.stderr
