"""NEON trees, prepared from the real wheel."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from bn_detect.data import DatasetError, check_dataset, prepare_dataset, register_dataset
from bn_detect.data.datasets.sources import deepforest_wheel
from bn_detect.data.datasets.sources.deepforest_wheel import read_sources

REPOSITORY = Path(__file__).parents[3]
SIZES = {"train": (2299, 2472), "val": (1249, 1035)}
TREES = {"train": 574, "val": 279}


def prepare(root: Path, wheel: str | Path = "", *, force: bool = False, **options) -> bool:
    options["source"] = str(wheel)
    return prepare_dataset("neon_trees", options, root=root, force=force)


@pytest.fixture(autouse=True)
def usual_place():
    yield
    register_dataset("neon_trees")


@pytest.fixture
def registered(prepared):
    register_dataset("neon_trees", root=prepared)


def annotations(root, split):
    return json.loads((root / f"neon_trees/annotations/neon_trees_{split}.json").read_text())


def test_sources(wheel):
    sources = read_sources(wheel)
    for split, (image, boxes) in sources.items():
        assert image.size == SIZES[split] and image.mode == "RGB"
        assert boxes.shape == (TREES[split], 4)
        assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0
        assert (boxes.max(axis=0)[2:] <= image.size).all()


def test_splits_are_different_places(prepared):
    places = [
        {image["file_name"].split("_x")[0] for image in annotations(prepared, split)["images"]}
        for split in ("train", "val")
    ]
    assert [len(p) for p in places] == [1, 1] and places[0].isdisjoint(places[1])


@pytest.mark.parametrize("split", ["train", "val"])
def test_tiles_and_boxes(prepared, wheel, split):
    source, trees = read_sources(wheel)[split]
    coco = annotations(prepared, split)
    images = {image["id"]: image for image in coco["images"]}
    corners = {}
    for key, image in images.items():
        x0, y0 = (int(part[1:]) for part in Path(image["file_name"]).stem.split("_")[-2:])
        corners[key] = np.array([x0, y0])
        with Image.open(prepared / "neon_trees" / split / image["file_name"]) as tile:
            assert tile.size == (image["width"], image["height"]) and max(tile.size) <= 256
            expected = source.crop((x0, y0, x0 + tile.width, y0 + tile.height))
            assert tile.tobytes() == expected.tobytes()
    for a in coco["annotations"]:
        x, y, w, h = a["bbox"]
        image = images[a["image_id"]]
        assert x >= 0 and y >= 0 and w > 0 and h > 0
        assert x + w <= image["width"] and y + h <= image["height"] and a["area"] == w * h
        tree = trees[a["tree"]]
        low = corners[a["image_id"]] + [x, y]
        assert (low >= tree[:2]).all() and (low + [w, h] <= tree[2:]).all()  # a part of its tree
        assert (a["iscrowd"] == 0) == (w * h > 0.5 * np.prod(tree[2:] - tree[:2]))


def test_validation_tiles_are_disjoint_and_count_no_tree_twice(prepared):
    coco = annotations(prepared, "val")
    assert sum(image["width"] * image["height"] for image in coco["images"]) == 1249 * 1035
    counted = [a["tree"] for a in coco["annotations"] if not a["iscrowd"]]
    assert sorted(counted) == list(range(TREES["val"]))


def test_every_training_tree_is_whole_or_counted(prepared):
    coco = annotations(prepared, "train")
    assert {a["tree"] for a in coco["annotations"] if not a["iscrowd"]} == set(range(574))


def test_record_and_overviews(prepared, registered):
    record = json.loads((prepared / "neon_trees/prepared.json").read_text())
    assert record["options"] == {
        "tile": 256,
        "overlap": 64,
        "min_visible": 0.5,
        "edge_boxes": "ignore",
    }
    assert record["source"]["requirement"] == "deepforest==2.1.0"
    assert record["source"]["licence"] == "MIT"
    for split in ("train", "val"):
        summary = check_dataset(f"neon_trees_{split}")
        counts = record["counts"][split]
        assert counts["source_boxes"] == TREES[split]
        assert (counts["images"], counts["annotations"]) == (summary.images, summary.annotations)
        with Image.open(prepared / f"neon_trees/overview_{split}.jpg") as overview:
            assert overview.size == SIZES[split]


def test_pycocotools_and_detectron2_load_it(prepared, registered):
    for split, tiles in (("train", 156), ("val", 25)):
        coco = COCO(str(prepared / f"neon_trees/annotations/neon_trees_{split}.json"))
        dicts = DatasetCatalog.get(f"neon_trees_{split}")
        assert len(coco.imgs) == len(dicts) == tiles
        assert sum(len(d["annotations"]) for d in dicts) == len(coco.anns)
        assert all(Path(d["file_name"]).is_file() for d in dicts)
        metadata = MetadataCatalog.get(f"neon_trees_{split}")
        assert metadata.thing_classes == ["tree"] and metadata.evaluator_type == "coco"


def test_evaluation_ignores_what_is_left_of_cut_trees(registered, tmp_path):
    """Finding all trees is AP 100, with or without the remnants of trees that an edge cuts."""
    evaluator = COCOEvaluator(
        "neon_trees_val", ("bbox",), False, output_dir=str(tmp_path), use_fast_impl=False
    )
    for remnants in (False, True):
        evaluator.reset()
        for record in DatasetCatalog.get("neon_trees_val"):
            found = [a for a in record["annotations"] if remnants or not a["iscrowd"]]
            boxes = torch.tensor([a["bbox"] for a in found]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances = Instances((record["height"], record["width"]))
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.ones(len(found))
            instances.pred_classes = torch.zeros(len(found), dtype=torch.int64)
            evaluator.process([record], [{"instances": instances}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100, abs=1e-6)


def test_registering_is_lazy_and_idempotent(tmp_path):
    register_dataset("neon_trees", root=tmp_path / "nowhere")
    register_dataset("neon_trees", root=tmp_path / "nowhere")
    json_file = MetadataCatalog.get("neon_trees_val").json_file
    assert json_file == str(tmp_path / "nowhere/neon_trees/annotations/neon_trees_val.json")
    register_dataset("neon_trees")
    assert "nowhere" not in MetadataCatalog.get("neon_trees_val").json_file


def test_second_run_does_nothing(prepared, wheel):
    before = (prepared / "neon_trees").stat().st_mtime_ns
    assert not prepare(prepared, wheel)
    assert not prepare(prepared, "not read")
    assert (prepared / "neon_trees").stat().st_mtime_ns == before


def test_other_options_need_force(tmp_path, wheel):
    assert prepare(tmp_path, wheel, tile=1200, overlap=0, edge_boxes="drop")
    with pytest.raises(DatasetError, match=r"tile=1200, overlap=0.*not with tile=256.*--force"):
        prepare(tmp_path, wheel)
    assert len(annotations(tmp_path, "train")["images"]) == 2 * 3
    assert prepare(tmp_path, wheel, tile=2500, overlap=0, force=True)
    counts = [check_dataset(f"neon_trees_{split}").annotations for split in ("train", "val")]
    assert counts == [574, 279]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".neon_trees.lock", "neon_trees"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, wheel):
    (tmp_path / "neon_trees").mkdir()
    (tmp_path / "neon_trees/mine.txt").touch()
    for force in (False, True):
        with pytest.raises(DatasetError, match="was not made by `bn-detect data`"):
            prepare(tmp_path, wheel, force=force)
    assert (tmp_path / "neon_trees/mine.txt").exists()


def test_of_two_at_once_one_prepares(tmp_path, wheel):
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(prepare, tmp_path, wheel, tile=1300, overlap=0) for _ in range(2)]
        assert sorted(run.result() for run in runs) == [False, True]


def kill_while_building(root: Path, wheel: Path, *arguments: str) -> None:
    """Start the tool and kill -9 it once it has written some tiles."""
    command = [sys.executable, "tools/prepare_data.py", "neon-trees", "--root", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    tool = subprocess.Popen(
        [*command, "--from", str(wheel), *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    tiles = root / ".neon_trees.building" / "train"
    while tool.poll() is None and not (tiles.is_dir() and len(os.listdir(tiles)) > 3):
        time.sleep(0.002)
    tool.kill()
    assert tool.wait() == -9


def test_a_killed_run_leaves_nothing_half_made(tmp_path, wheel):
    kill_while_building(tmp_path, wheel)
    assert not (tmp_path / "neon_trees").exists()
    options = {"tile": 1300, "overlap": 0}
    assert prepare(tmp_path, wheel, **options)
    record = (tmp_path / "neon_trees/prepared.json").read_text()

    kill_while_building(tmp_path, wheel, "--force")
    assert (tmp_path / "neon_trees/prepared.json").read_text() == record
    assert not prepare(tmp_path, wheel, **options)
    assert prepare(tmp_path, wheel, **options, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".neon_trees.lock", "neon_trees"]


def test_a_wrong_wheel_is_refused(tmp_path, wheel, monkeypatch):
    damaged = tmp_path / "damaged.whl"
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DatasetError, match=r"damaged\.whl .*sha256 is [0-9a-f]{64}, must be 8c279"):
        prepare(tmp_path / "root", damaged)
    assert not (tmp_path / "root/neon_trees").exists()
    with pytest.raises(DatasetError, match=r"no wheel at .*absent\.whl"):
        prepare(tmp_path / "root", tmp_path / "absent.whl")


def test_a_wrong_file_in_the_wheel_is_refused(tmp_path, wheel, monkeypatch):
    fake = tmp_path / "fake.whl"
    stem = deepforest_wheel.SOURCES["train"].stem
    with zipfile.ZipFile(fake, "w") as archive:
        archive.writestr(f"deepforest/data/{stem}.png", b"")
        archive.writestr(f"deepforest/data/{stem}.xml", b"")
    digest = hashlib.sha256(fake.read_bytes()).hexdigest()
    wheel = dataclasses.replace(deepforest_wheel.WHEEL, sha256=digest)
    monkeypatch.setattr(deepforest_wheel, "WHEEL", wheel)
    with pytest.raises(DatasetError, match=rf"{stem}\.png in the wheel: sha256 is"):
        prepare(tmp_path / "root", fake)


def test_a_failing_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DatasetError, match=r"cannot download deepforest==2\.1\.0: .*--from PATH"):
        prepare(tmp_path)
    shutil.rmtree(tmp_path)
