"""The faster evaluator gives the numbers of pycocotools, and is taken where it is installed."""

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from bn_detect.engine.coco_evaluator import FasterCOCOEvaluator, build_coco_evaluator

NAME, SIZE, CLASSES = "evaluated_both_ways", 200, 3
TASKS = ("bbox", "segm", "keypoints")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Images with crowds, objects of all sizes, and none at all."""
    rng, annotations = np.random.default_rng(0), []
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(30)]
    for image in images[:-2]:
        for _ in range(rng.integers(0, 9)):
            w, h = rng.choice([8, 30, 60, 120], 2)
            x, y = rng.uniform(0, SIZE - w), rng.uniform(0, SIZE - h)
            points = np.stack([x + w * rng.random(17), y + h * rng.random(17), np.full(17, 2)], 1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.integers(1, CLASSES + 1)),
                    "bbox": [x, y, float(w), float(h)],
                    "area": float(w * h * 0.8),
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": 17,
                }
            )
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(CLASSES)]
    path = tmp_path_factory.mktemp("coco") / "instances.json"
    tree = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(tree))
    register_coco_instances(NAME, {}, str(path), str(path.parent))
    yield tree
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def _found(tree: dict, seed: int) -> list[tuple[dict, dict]]:
    """Detections near the objects and elsewhere, many with the same score."""
    g = torch.Generator().manual_seed(seed)
    pairs = []
    for image in tree["images"]:
        own = [a for a in tree["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in own]).reshape(-1, 4).repeat(3, 1)
        boxes = boxes + 5 * torch.randn(boxes.shape, generator=g)
        more = 40 + 60 * torch.rand(5, 4, generator=g)
        boxes = torch.cat([boxes, more])
        boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clamp(min=4)
        boxes = boxes.clamp(0, SIZE)
        count = len(boxes)
        x, y = torch.arange(SIZE)[None, None], torch.arange(SIZE)[None, :, None]
        x0, y0, x1, y1 = boxes.T[..., None, None]
        points = torch.rand(count, 17, 3, generator=g)
        points[..., :2] = (
            boxes[:, None, :2] + points[..., :2] * (boxes[:, 2:] - boxes[:, :2])[:, None]
        )
        instances = Instances(
            (SIZE, SIZE),
            pred_boxes=Boxes(boxes),
            scores=(10 * torch.rand(count, generator=g)).round() / 10,
            pred_classes=torch.randint(CLASSES, (count,), generator=g),
            pred_masks=(x >= x0) & (x < x1) & (y >= y0) & (y < y1),
            pred_keypoints=points,
        )
        size = {"image_id": image["id"], "height": SIZE, "width": SIZE}
        pairs.append((size, {"instances": instances}))
    return pairs


def _evaluated(kind: type, pairs: list, folder, **settings) -> dict:
    evaluator = kind(NAME, TASKS, distributed=False, output_dir=str(folder), **settings)
    evaluator.reset()
    for image, output in pairs:
        evaluator.process([image], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("seed", range(3))
def test_gives_the_same_numbers(dataset, tmp_path, seed, most):
    theirs, ours = (  # the evaluator moves keypoints in place: each gets its own
        _evaluated(kind, _found(dataset, seed), tmp_path / kind.__name__, max_dets_per_image=most)
        for kind in (COCOEvaluator, FasterCOCOEvaluator)
    )
    assert ours.keys() == theirs.keys() == set(TASKS)
    for task in TASKS:
        assert ours[task] == pytest.approx(theirs[task], rel=1e-12, nan_ok=True), task
        assert task == "keypoints" or 0 < ours[task]["AP"] < 100
    files = [f / "coco_instances_results.json" for f in tmp_path.iterdir()]
    assert files[0].read_text() == files[1].read_text()


def test_no_detection(dataset, tmp_path):
    none = Instances((SIZE, SIZE), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    none.pred_classes = torch.zeros(0, dtype=torch.int64)
    pairs = [({"image_id": 0, "height": SIZE, "width": SIZE}, {"instances": none})]
    assert math.isnan(_evaluated(FasterCOCOEvaluator, pairs, tmp_path)["bbox"]["AP"])


@pytest.mark.parametrize("there", [True, False])
def test_is_taken_where_it_is_installed(dataset, tmp_path, monkeypatch, there):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    evaluator = build_coco_evaluator(NAME, str(tmp_path))
    assert type(evaluator) is (FasterCOCOEvaluator if there else COCOEvaluator)
