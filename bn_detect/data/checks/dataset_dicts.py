"""Turn Detectron2's standard dataset dicts into the form of a COCO JSON: one check fits both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from .coco_content import Coco
from .numbers import is_box


def dicts_to_coco(dicts: Sequence[dict[str, Any]], classes: Sequence[str] | None) -> Coco:
    """Return the images, annotations and categories of standard dataset dicts.

    What the dicts lack is left out: sizes, and boxes that are not upright rectangles in pixels. An
    annotation has no id in the dicts; here its id says which annotation of which image it is.

    Args:
        classes: names of the contiguous category ids. None takes the ids in use as categories.
    """
    images, annotations = [], []
    for index, record in enumerate(dicts):
        image: dict[str, Any] = {
            key: record[key] for key in ("file_name", "width", "height") if key in record
        }
        image["id"] = record.get("image_id", index)
        images.append(image)
        for place, instance in enumerate(record.get("annotations", ())):
            annotation = {
                "id": f"#{place} of {image['id']}",
                "image_id": image["id"],
                "iscrowd": instance.get("iscrowd", 0),
            }
            for key in ("category_id", "ignore"):
                if key in instance:
                    annotation[key] = instance[key]
            for key in ("segmentation", "keypoints"):
                if key in instance:
                    annotation[key] = _plain(instance[key])
            if "keypoints" in annotation:  # evaluation counts them itself
                points = annotation["keypoints"]
                labelled = sum(v in (1, 2) for v in points[2::3]) if isinstance(points, list) else 0
                annotation["num_keypoints"] = instance.get("num_keypoints", labelled)
            box, mode = instance.get("bbox"), instance.get("bbox_mode")
            if box is not None and mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
                annotation["bbox"] = _xywh(list(box), mode)
            annotations.append(annotation)
    names = classes or sorted({a["category_id"] for a in annotations if "category_id" in a})
    categories = [
        {"id": index if classes else name, "name": str(name)} for index, name in enumerate(names)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _plain(value: Any) -> Any:
    """Return arrays and tuples as lists, as a JSON has them."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _xywh(box: list[Any], mode: BoxMode) -> list[Any]:
    """Return COCO's form; a box that is not four numbers stays as it is, for the check to find."""
    if mode == BoxMode.XYXY_ABS and is_box(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return box
