"""Pictures of what a detector sees."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

_TRUTH, _DETECTION = (255, 215, 0), (0, 200, 255)


def draw_detections(
    dataset_dicts: list[dict],
    results: Path,
    out: Path,
    *,
    images: int = 6,
    min_score: float = 0.5,
    height: int = 320,
) -> Path:
    """Draw ground truth (left) and detections (right) of the fullest images of a dataset.

    Args:
        dataset_dicts: Detectron2's dataset dicts with boxes in XYWH or XYXY.
        results: the `coco_instances_results.json` of Detectron2's COCOEvaluator.
        images: rows of the picture.
        min_score: detections below it are left out.
        height: of a row, pixels.

    Returns:
        `out`, a PNG.
    """
    detections = defaultdict(list)
    for found in json.loads(Path(results).read_text()):
        if found["score"] >= min_score:
            detections[found["image_id"]].append(found["bbox"])
    fullest = sorted(dataset_dicts, key=lambda d: -len(d["annotations"]))[:images]
    rows = []
    for record in fullest:
        truth = [_xywh(a) for a in record["annotations"] if not a["iscrowd"]]
        pair = [
            _with_boxes(record["file_name"], boxes, colour, height)
            for boxes, colour in ((truth, _TRUTH), (detections[record["image_id"]], _DETECTION))
        ]
        rows.append(np.concatenate(pair, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(out)
    return out


def _xywh(annotation: dict) -> list[float]:
    x, y, a, b = annotation["bbox"]
    return [x, y, a, b] if annotation["bbox_mode"] == BoxMode.XYWH_ABS else [x, y, a - x, b - y]


def _with_boxes(file_name: str, boxes: list[list[float]], colour: tuple, height: int) -> np.ndarray:
    with Image.open(file_name) as file:
        image = file.convert("RGB")
    scale = height / image.height
    image = image.resize((round(image.width * scale), height))
    draw = ImageDraw.Draw(image)
    for x, y, w, h in boxes:
        draw.rectangle(
            [x * scale, y * scale, (x + w) * scale, (y + h) * scale], outline=colour, width=2
        )
    return np.asarray(image)
