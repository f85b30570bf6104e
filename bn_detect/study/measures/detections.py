"""The measure "detections": a picture of what a detector finds in the fullest images."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

from ...reporting.columns import Result
from ...reporting.drawing import Picture, Results, panels
from .measure import Measure, Options
from .subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 6
MIN_SCORE = 0.5  # detections below it are left out
HEIGHT = 320  # of a row, pixels
_TRUTH, _DETECTION = (255, 215, 0), (0, 200, 255)
Boxes = list[list[float]]  # x, y, width, height


def detections(subject: Subject, options: Options, kept: Result) -> Iterator[dict[str, Any]]:
    """Yield truth and detections of some images; the detections are those of the evaluation."""
    name = subject.cfg.DATASETS.TEST[0]
    path = subject.folder / "inference_population" / name / "coco_instances_results.json"
    if not path.exists():
        raise ValueError(f"there is no {path}: name the measure evaluation too")
    boxes: dict[Any, Boxes] = defaultdict(list)
    for result in json.loads(path.read_text()):
        if result["score"] >= MIN_SCORE:
            boxes[result["image_id"]].append(result["bbox"])
    fullest = sorted(DatasetCatalog.get(name), key=lambda d: -len(d["annotations"]))[:IMAGES]
    yield {
        "images": [
            {
                "file_name": os.path.abspath(d["file_name"]),
                "truth": [_xywh(a) for a in d["annotations"] if not a.get("iscrowd")],
                "detections": boxes[d["image_id"]],
            }
            for d in fullest
        ]
    }


def _xywh(annotation: dict) -> list[float]:
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    return [float(v) for v in BoxMode.convert(list(box), mode, BoxMode.XYWH_ABS)]


def _draw(results: Results) -> "Figure | None":
    """Truth at the left of each arm's detections, of its first seed."""
    shown = {arm: runs[0]["images"] for arm, runs in results.items()}
    if not all(os.path.isfile(i["file_name"]) for s in shown.values() for i in s):
        return None
    figure, axes = panels(len(shown), 5, 2.2 * IMAGES)
    for axis, (arm, images) in zip(axes, shown.items(), strict=True):
        axis.imshow(_rows(images))
        axis.set_title(f"{arm}: truth, detections", fontsize=9)
        axis.axis("off")
    return figure


def _rows(images: list[dict]) -> np.ndarray:
    rows = [
        np.concatenate(
            [
                _with_boxes(image["file_name"], image["truth"], _TRUTH),
                _with_boxes(image["file_name"], image["detections"], _DETECTION),
            ],
            axis=1,
        )
        for image in images
    ]
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])


def _with_boxes(file_name: str, boxes: Boxes, colour: tuple[int, int, int]) -> np.ndarray:
    with Image.open(file_name) as file:
        image = file.convert("RGB")
    scale = HEIGHT / image.height
    image = image.resize((round(image.width * scale), HEIGHT))
    draw = ImageDraw.Draw(image)
    for x, y, w, h in boxes:
        corners = [x * scale, y * scale, (x + w) * scale, (y + h) * scale]
        draw.rectangle(corners, outline=colour, width=2)
    return np.asarray(image)


MEASURE = Measure(
    detections,
    figures=(
        Picture(
            "detections",
            "Ground truth (left, yellow) and detections above a score of 0.5 (right, blue) of the "
            "images with most objects, first seed.",
            _draw,
        ),
    ),
)
