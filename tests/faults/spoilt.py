"""A small dataset to spoil, and the one line in which the check refuses it."""

import itertools
import json
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances

from bn_detect.data import DatasetError, check_datasets
from tests.data.small_dataset import small_dataset

from .test_data import no_hang

SERIAL = itertools.count()
CLOSED = [[1, 1, 9, 1, 9, 9, 1, 9]]
POINTS = [5, 5, 2, 7, 7, 1, 0, 0, 0]


def register_small(folder: Path, *, known: bool = True) -> tuple[str, dict]:
    """Register a small dataset with masks and keypoints; return its name and its JSON's content."""
    name = f"spoilt_{next(SERIAL)}"
    coco = small_dataset(folder)
    for annotation in coco["annotations"]:
        annotation |= {"segmentation": CLOSED, "keypoints": list(POINTS), "num_keypoints": 2}
    if known:
        register(name, folder)
    return name, coco


def register(name: str, folder: Path) -> None:
    names = {"keypoint_names": ["a", "b", "c"], "keypoint_flip_map": [("a", "b")]}
    register_coco_instances(name, names, str(folder / "a.json"), str(folder / "images"))


def spoil(entry: dict, key: str, value) -> None:
    entry.pop(key) if value is ... else entry.update({key: value})


def uses(name: str, **model):
    """Return a config that trains and evaluates on the dataset, with keys of MODEL."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.MODEL.MASK_ON = model.get("MASK_ON", False)
    cfg.MODEL.KEYPOINT_ON = model.get("KEYPOINT_ON", False)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1] * 3
    return cfg


def refusal(folder: Path, name: str, coco: dict, *parts: str, **model) -> str:
    """Return the one line in which the check refuses the dataset."""
    (folder / "a.json").write_text(json.dumps(coco))
    with no_hang(), pytest.raises(DatasetError) as error:
        check_datasets([name], uses(name, **model))
    message = str(error.value)
    assert all(part in message for part in (name, *parts)) and "\n" not in message, message
    assert len(message) < 500
    return message.replace(str(folder), "FOLDER")
