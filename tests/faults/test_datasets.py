"""Spoilt datasets, one fault at a time: refused in one line before training begins."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_util

from bn_detect.commands import train as train_command
from bn_detect.data import BNDatasetMapper, DatasetError, check_dataset, check_datasets
from tests.data.small_dataset import small_dataset
from tests.helpers.train_net import REPOSITORY

from .mutations import mutants
from .test_data import judged, no_hang

SERIAL = itertools.count()
IMAGE_FAULTS = ["missing", "empty", "cut off", "text", "another size", "a folder", "one channel"]


@pytest.mark.parametrize("kind", IMAGE_FAULTS)
@pytest.mark.fault("an image file is {kind}", should="refused with its name, or read as it is")
def test_images(kind, tmp_path, happened):
    coco = small_dataset(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(coco))
    name, path = f"spoilt_image_{IMAGE_FAULTS.index(kind)}", tmp_path / "images/1.png"
    register_coco_instances(name, {}, str(tmp_path / "a.json"), str(tmp_path / "images"))
    content = path.read_bytes()
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind in ("another size", "one channel"):
        shape = (30, 40) if kind == "one channel" else (31, 40, 3)
        Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    elif kind != "missing":
        kinds = {"empty": b"", "cut off": content[: len(content) // 2], "text": b"no image"}
        path.write_bytes(kinds[kind])
    if kind == "one channel":
        check_dataset(name)
        happened("read")
        return
    with pytest.raises(ValueError, match="1.png") as error:
        check_dataset(name)
    happened(str(error.value).replace(str(tmp_path), "FOLDER"))


@pytest.mark.parametrize("kind", ["a FIFO", "16 bits a pixel", "floats", "1 x 4000 px"])
@pytest.mark.fault("an image file is {kind}", should="refused in one line with its name")
def test_images_that_no_step_can_use(kind, tmp_path, happened):
    name, coco = register_small(tmp_path)
    path = tmp_path / "images/1.png"
    path.unlink()
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "16 bits a pixel":
        Image.fromarray(np.full((30, 40), 4000, np.uint16)).save(path)
    elif kind == "floats":
        Image.fromarray(np.full((30, 40), 0.5, np.float32)).save(path, "TIFF")
    else:
        Image.fromarray(np.zeros((1, 4000, 3), np.uint8)).save(path)
        coco["images"][1].update(width=4000, height=1)
        coco["annotations"][2]["bbox"] = [5, 0, 4, 1]
    happened(refusal(tmp_path, name, coco, "1.png"))


CLOSED = [[1, 1, 9, 1, 9, 9, 1, 9]]
RLE = {"size": [30, 40], "counts": [100, 50, 1050]}
SEGMENTATIONS = {
    "missing": ...,
    "null": None,
    "empty": [],
    "flat": CLOSED[0],
    "text": "polygon",
    "a number": 7,
    "polygons of text": ["abcdefgh"],
    "of two corners": [*CLOSED, [1, 1, 2, 2]],
    "of an odd length": [[1, 1, 9, 1, 9, 9, 1]],
    "NaN": [[math.nan, 1, 9, 1, 9, 9]],
    "infinite": [[math.inf, 1, 9, 1, 9, 9]],
    "of 400 digits": [[10**400, 1, 9, 1, 9, 9]],
    "far outside its image": [[10**12, 1, 9, 1, 9, 9]],
    "of letters": [["a", 1, 9, 1, 9, 9]],
    "an RLE of another size": {**RLE, "size": [40, 30]},
    "an RLE without a size": {"counts": RLE["counts"]},
    "an RLE of text as size": {**RLE, "size": "30x40"},
    "an RLE without counts": {"size": [30, 40]},
    "an RLE of too few pixels": {**RLE, "counts": [100, 50]},
    "an RLE of negative counts": {**RLE, "counts": [1300, -100]},
    "an RLE of fractions": {**RLE, "counts": [0.5, 1199.5]},
    "an RLE of garbage": {**RLE, "counts": "?!garbage"},
    "an RLE that is cut off": {**RLE, "counts": "T3b1~"},
    "an RLE under MASK_FORMAT polygon": RLE,
}


@pytest.mark.parametrize("kind", SEGMENTATIONS)
@pytest.mark.fault("a segmentation is {kind}", should="refused in one line with its annotation")
def test_segmentations(kind, tmp_path, happened):
    name, coco = register_small(tmp_path)
    spoil(coco["annotations"][1], "segmentation", SEGMENTATIONS[kind])
    happened(
        refusal(tmp_path, name, coco, "annotation 2 of image 10", "segmentation", MASK_ON=True)
    )


POINTS = [5, 5, 2, 7, 7, 1, 0, 0, 0]
KEYPOINTS = {
    "missing": ("keypoints", ...),
    "empty": ("keypoints", []),
    "one too few": ("keypoints", POINTS[:6]),
    "one coordinate too few": ("keypoints", POINTS[:8]),
    "text": ("keypoints", "nose"),
    "a list of texts": ("keypoints", ["5"] * 9),
    "NaN": ("keypoints", [math.nan, *POINTS[1:]]),
    "of visibility 3": ("keypoints", [5, 5, 3, *POINTS[3:]]),
    "miscounted": ("num_keypoints", 0),
    "not counted": ("num_keypoints", ...),
}


@pytest.mark.parametrize("kind", KEYPOINTS)
@pytest.mark.fault("keypoints are {kind}", should="refused in one line with their annotation")
def test_keypoints(kind, tmp_path, happened):
    name, coco = register_small(tmp_path)
    spoil(coco["annotations"][1], *KEYPOINTS[kind])
    parts = ("annotation 2 of image 10", "keypoints")
    happened(refusal(tmp_path, name, coco, *parts, KEYPOINT_ON=True))


EVALUATION = {
    "an annotation id that is text": ("id", "two"),
    "an annotation id of 400 digits": ("id", 10**400),
    "an area that is null": ("area", None),
    "an area that is missing": ("area", ...),
    "an area of 400 digits": ("area", 10**400),
    "an area that is NaN": ("area", math.nan),
    "an iscrowd that is missing": ("iscrowd", ...),
    "'ignore' set": ("ignore", 1),
    "a box of 400 digits": ("bbox", [10**400, 1, 2, 2]),
}


@pytest.mark.parametrize("kind", EVALUATION)
@pytest.mark.fault(
    "an annotation has {kind}, which only loading or evaluation would notice",
    should="refused in one line before training",
)
def test_annotations_that_cannot_be_evaluated(kind, tmp_path, happened):
    name, coco = register_small(tmp_path)
    spoil(coco["annotations"][1], *EVALUATION[kind])
    happened(refusal(tmp_path, name, coco, "annotation"))


@pytest.mark.parametrize("kind", ["none", "unknown", "panoptic"])
@pytest.mark.fault("the evaluator type of a test set is {kind}", should="refused before training")
def test_evaluator_types(kind, tmp_path, happened):
    name, coco = register_small(tmp_path, known=False)
    DatasetCatalog.register(name, list)
    types = {"unknown": "voc", "panoptic": "coco_panoptic_seg"}
    if kind in types:
        MetadataCatalog.get(name).set(evaluator_type=types[kind], thing_classes=["a"])
    happened(refusal(tmp_path, name, coco, "evaluator_type", "DATASETS.TEST"))


@pytest.mark.parametrize("kind", ["there are no annotations", "all annotations are crowds"])
@pytest.mark.fault("of a training set, {kind}", should="refused before training")
def test_nothing_to_train_on(kind, tmp_path, happened):
    name, coco = register_small(tmp_path)
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    if kind.startswith("there"):
        coco["annotations"] = []
    happened(refusal(tmp_path, name, coco, "DATASETS.TRAIN", "no object to train on"))


@pytest.mark.fault(
    "a JSON has a number of 5,000 digits, or is a FIFO", should="refused in one line with its name"
)
def test_json(tmp_path, happened):
    name, coco = register_small(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(coco)[:-1] + ', "x": ' + "9" * 5000 + "}")
    with pytest.raises(ValueError, match="a.json cannot be read") as error:
        check_datasets([name], uses(name))
    (tmp_path / "a.json").unlink()
    os.mkfifo(tmp_path / "a.json")
    with no_hang(), pytest.raises(ValueError, match="a.json is no regular file"):
        check_datasets([name], uses(name))
    happened(str(error.value).replace(str(tmp_path), "FOLDER"))


@pytest.mark.parametrize("head", ["MASK_ON", "KEYPOINT_ON"])
@pytest.mark.fault(
    "a COCO JSON for {head} with one thing spoilt: keys, types, polygons, points, ids, text",
    should="refused in one line by the check before training; else mapped and evaluated",
)
@pytest.mark.timeout(900)
def test_any_mutant_is_refused_or_used(head, tmp_path, size, happened):
    name, coco = register_small(tmp_path)
    cfg = uses(name, **{head: True})
    cfg.INPUT.MASK_FORMAT = "bitmask"

    def check() -> None:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        register(name, tmp_path)
        check_datasets([name], cfg)

    def use() -> str | None:
        mapper = BNDatasetMapper(cfg, True)
        evaluator = COCOEvaluator(name, distributed=False, kpt_oks_sigmas=[0.1] * 3)
        evaluator.reset()
        for d in get_detection_dataset_dicts([name], filter_empty=False):
            objects = [a for a in d["annotations"] if not a.get("iscrowd", 0)]
            mapped = mapper(d)["instances"]
            if len(mapped) != len(objects):
                return f"{len(objects)} objects became {len(mapped)}"
            if not mapped.gt_boxes.tensor.isfinite().all():
                return "a box is not finite"
            evaluator.process([d], [{"instances": perfect(d, objects)}])
        results = evaluator.evaluate()
        return None if set(results) == {"bbox", TASKS[head]} else f"evaluated {set(results)}"

    def perfect(d: dict, objects: list[dict]) -> Instances:
        found = Instances((d["height"], d["width"]))
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes, found.scores = Boxes(boxes), torch.ones(len(boxes))
        found.pred_classes = torch.tensor([o["category_id"] for o in objects], dtype=torch.int64)
        if head == "MASK_ON":
            found.pred_masks = torch.zeros(len(boxes), 30, 40, dtype=torch.bool)
        else:
            found.pred_keypoints = torch.zeros(len(boxes), 3, 3)
        return found

    happened(judged(mutants(coco, "json", size(60, 500)), tmp_path / "a.json", check, use))


TASKS = {"MASK_ON": "segm", "KEYPOINT_ON": "keypoints"}


def test_what_is_right_is_not_refused(tmp_path):
    """The dataset that the tests above spoil, and faults that do not matter to a use."""
    name, coco = register_small(tmp_path)
    compressed = {"size": [30, 40], "counts": mask_util.frPyObjects(RLE, 30, 40)["counts"].decode()}
    coco["annotations"][2]["segmentation"] = compressed
    (tmp_path / "a.json").write_text(json.dumps(coco))
    for keys in ({}, {"MASK_ON": True}, {"KEYPOINT_ON": True}):
        cfg = uses(name, **keys)
        cfg.INPUT.MASK_FORMAT = "bitmask"
        check_datasets([name], cfg)
    coco["annotations"][1].update(segmentation=[[math.nan, 1, 9, 1, 9, 9]], keypoints=None)
    (tmp_path / "a.json").write_text(json.dumps(coco))
    check_datasets([name], uses(name))


def test_training_passes_its_config_to_the_check(tmp_path):
    name, coco = register_small(tmp_path)
    del coco["annotations"][1]["segmentation"]
    (tmp_path / "a.json").write_text(json.dumps(coco))
    file = str(REPOSITORY / "configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x_global.yaml")
    keys = {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,), "MODEL.WEIGHTS": ""}
    keys |= {"OUTPUT_DIR": str(tmp_path / "out"), "MODEL.DEVICE": "cpu"}
    options = [str(text) for item in keys.items() for text in item]
    args = train_command.parse_arguments(["--config-file", file, *options])
    with pytest.raises(ValueError, match="annotation 2 .*'segmentation' is missing"):
        train_command.check(train_command.read_config(args), args, 1)


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
