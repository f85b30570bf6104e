"""A tiny folder with COCO's own layout, for Detectron2's builtin dataset names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, COCO_PERSON_KEYPOINT_NAMES
from PIL import Image, ImageDraw

THINGS = [category for category in COCO_CATEGORIES if category["isthing"]]
OBJECTS_PER_IMAGE = 4


def make_coco_folder(
    root: str | Path,
    num_images: int = 4,
    size: tuple[int, int] = (96, 64),
    num_categories: int = 80,
    keypoints: bool = True,
) -> Path:
    """Write `root`/coco: annotations and images of train2017 and val2017.

    Set DETECTRON2_DATASETS to `root` before Detectron2 is imported, and coco_2017_train,
    coco_2017_val and keypoints_coco_2017_{train,val} are these. Each image shows ellipses on noise,
    the first one a "person"; they have boxes, polygons and (the persons) keypoints.

    Args:
        num_images: of each split.
        size: (width, height) in pixels.
        num_categories: objects are of COCO's first so many categories; all 80 are listed.
        keypoints: write person_keypoints_*.json too.

    Returns:
        `root`/coco.
    """
    folder = Path(root) / "coco"
    (folder / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, first_id in (("train2017", 1), ("val2017", 1 + num_images)):
        (folder / split).mkdir()
        images, annotations = [], []
        for image_id in range(first_id, first_id + num_images):
            name = f"{image_id:012d}.jpg"
            canvas = Image.fromarray(rng.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8))
            for index in range(OBJECTS_PER_IMAGE):
                thing = THINGS[rng.integers(num_categories) if index else 0]
                outline = _draw_ellipse(canvas, rng, tuple(thing["color"]))
                annotation = _annotation(outline, thing["id"], image_id, len(annotations) + 1)
                annotations.append(annotation)
            canvas.save(folder / split / name, quality=95)
            images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        categories = [{"id": thing["id"], "name": thing["name"]} for thing in THINGS]
        _write(folder / f"annotations/instances_{split}.json", images, annotations, categories)
        if keypoints:
            persons = [_with_keypoints(a, rng) for a in annotations if a["category_id"] == 1]
            person = [{**categories[0], "keypoints": COCO_PERSON_KEYPOINT_NAMES, "skeleton": []}]
            path = folder / f"annotations/person_keypoints_{split}.json"
            _write(path, images, persons, person)
    return folder


def _draw_ellipse(
    canvas: Image.Image, rng: np.random.Generator, color: tuple[int, ...]
) -> np.ndarray:
    """Draw an ellipse somewhere inside the canvas; (12, 2) points of its outline."""
    extent = np.array(canvas.size)
    radius = rng.uniform(0.12, 0.3, 2) * extent
    center = rng.uniform(radius, extent - radius)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    outline = center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline], fill=color)
    return outline.round(2)


def _annotation(outline: np.ndarray, category: int, image: int, number: int) -> dict[str, Any]:
    low, high = outline.min(axis=0), outline.max(axis=0)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
        "area": float(np.prod(high - low) * np.pi / 4),
        "iscrowd": 0,
        "segmentation": [outline.ravel().tolist()],
    }


def _with_keypoints(annotation: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """COCO's 17 keypoints somewhere in the box, all visible, at whole pixels."""
    x, y, w, h = annotation["bbox"]
    count = len(COCO_PERSON_KEYPOINT_NAMES)
    points = (np.array([x, y]) + rng.uniform(0, 1, (count, 2)) * np.array([w, h])).astype(int)
    visible = np.full((count, 1), 2)
    flat = np.concatenate([points, visible], axis=1).ravel().tolist()
    return {**annotation, "keypoints": flat, "num_keypoints": count}


def _write(path: Path, images: list, annotations: list, categories: list) -> None:
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
