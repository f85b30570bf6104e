"""Config files with keys of this package are read as they were written."""

import argparse
from pathlib import Path

import detectron2
import pytest

from bn_detect.configuration.reading import read_config

from ..helpers.train_net import REPOSITORY


def read(path, *options: str):
    return read_config(argparse.Namespace(config_file=str(path), opts=list(options)))


def test_nodes_of_this_package(tmp_path):
    shuffled = REPOSITORY / "configs/neon/faster_rcnn_lean_FPN_shuffled.yaml"
    cfg = read(shuffled, "MODEL.LEVEL_BN.BATCH", "level")
    assert (cfg.MODEL.ROI_BN.BATCH, cfg.MODEL.LEVEL_BN.BATCH) == ("shuffled", "level")
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    again = read(tmp_path / "dumped.yaml")
    assert again.MODEL.ROI_BN == cfg.MODEL.ROI_BN and again.SOLVER.STEPS == cfg.SOLVER.STEPS


def test_every_config_that_detectron2_ships():
    files = list(Path(detectron2.__file__).parent.glob("model_zoo/configs/**/*.yaml"))
    assert len(files) > 50
    for file in files:
        read(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SIZES", "[32, 64]"),
        ("SIZES", "[[32, 64]]"),
        ("ASPECT_RATIOS", "[0.5, 1.0]"),
        ("ANGLES", "[0, 90]"),
    ],
)
def test_anchors_of_all_feature_maps_or_of_each(key, value):
    shuffled = REPOSITORY / "configs/neon/faster_rcnn_lean_FPN_shuffled.yaml"
    anchors = read(shuffled, f"MODEL.ANCHOR_GENERATOR.{key}", value).MODEL.ANCHOR_GENERATOR
    assert str(anchors[key]) == value


@pytest.mark.parametrize("value", ["[[32], 64]", "[[]]", "[['32']]"])
def test_anchors_that_are_neither(value):
    shuffled = REPOSITORY / "configs/neon/faster_rcnn_lean_FPN_shuffled.yaml"
    with pytest.raises(ValueError, match="MODEL.ANCHOR_GENERATOR.SIZES is"):
        read(shuffled, "MODEL.ANCHOR_GENERATOR.SIZES", value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('DATASETS: {TRAIN: ("x",)}\n', 'DATASETS.TRAIN is ("x"; it must be a list'),
        ("INPUT: {MIN_SIZE_TRAIN: (3, 4)}\n", "write MIN_SIZE_TRAIN: [3]"),
        ('DATASETS: {TRAIN: ("x", "y")}\n', "write KEY: [1, 2]"),
        ("DATASETS:\n  TRAIN: x\n", "DATASETS.TRAIN is x; it must be a list, as \"['x']\""),
        ("DATASETS:\n  TRAIN: [3]\n", "DATASETS.TRAIN is (3,), which holds 3"),
    ],
)
def test_tuples_within_braces_and_words_in_place_of_lists(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        read(tmp_path / "mine.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_tuple_in_a_line_of_its_own_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_text('DATASETS:\n  TRAIN: ("x",)\n')
    assert read(tmp_path / "mine.yaml").DATASETS.TRAIN == ("x",)
