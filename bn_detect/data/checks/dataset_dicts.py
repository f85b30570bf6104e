"""Detectron2's standard dataset dicts in the form of a COCO JSON, so that one check fits both."""

from collections.abc import Sequence
from typing import Any

from detectron2.structures import BoxMode

from .coco_content import Coco, is_box


def dicts_to_coco(dicts: Sequence[dict[str, Any]], classes: Sequence[str] | None) -> Coco:
    """The images, annotations and categories of standard dataset dicts.

    What the dicts leave out is left out: sizes, and boxes that are not upright rectangles in
    pixels. An annotation has no id there; here it is its place in its image.

    Args:
        classes: names of the contiguous category ids; None: the ids in use are the categories.
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
            if "category_id" in instance:
                annotation["category_id"] = instance["category_id"]
            box, mode = instance.get("bbox"), instance.get("bbox_mode")
            if box is not None and mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
                annotation["bbox"] = _xywh(list(box), mode)
            annotations.append(annotation)
    names = classes or sorted({a["category_id"] for a in annotations if "category_id" in a})
    categories = [
        {"id": index if classes else name, "name": str(name)} for index, name in enumerate(names)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _xywh(box: list, mode: BoxMode) -> list:
    """As COCO has it; a box that is not four numbers stays as it is, for the check to find."""
    if mode == BoxMode.XYXY_ABS and is_box(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return box
