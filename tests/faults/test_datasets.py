"""Spoilt datasets, one fault at a time: refused in one line before training begins."""

import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from bn_detect.commands import train as train_command
from bn_detect.data import BNDatasetMapper, check_dataset, check_datasets
from tests.data.small_dataset import small_dataset
from tests.helpers.train_net import REPOSITORY

from .mutations import mutants
from .spoilt import refusal, register, register_small, uses
from .test_data import judged, no_hang

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
