"""Faults in the content of a COCO JSON, found without looking at the images."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..metadata import EMPTY_BOXES, REPEATED_IDS
from .keypoints import keypoint_faults
from .masks import mask_faults
from .needs import Needs
from .numbers import LARGEST, is_box, is_number

Coco = dict[str, Any]

# What Detectron2 reads of each entry, and the types it takes.
FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "images": {
        "id": (Integral, str),
        "file_name": (str,),
        "width": (Integral,),
        "height": (Integral,),
    },
    "annotations": {
        "id": (Integral, str),
        "image_id": (Integral, str),
        "category_id": (Integral,),
        "bbox": (list, tuple),
    },
    "categories": {"id": (Integral,), "name": (str,)},
}
SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
TYPE_NAMES: dict[type, str] = {
    Integral: "an integer",
    str: "a string",
    list: "a list",
    tuple: "a tuple",
}
TOLERANCE = 1.0  # pixels that a box may reach out of its image: rounding


def read_coco_json(path: Path, *, labelled: bool = True) -> Coco:
    """Read a COCO JSON without looking at its content.

    Args:
        labelled: False gives a file without "annotations" an empty list of them.

    Raises:
        DatasetError: the file cannot be read, is no JSON, or holds no object.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is no regular file")
    try:
        coco = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DatasetError(f"{path} is not valid JSON: {error.msg} at {where}") from error
    except (OSError, RecursionError, ValueError) as error:  # also numbers of too many digits
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(coco, dict):
        raise DatasetError(f"{path} must hold an object, found a {type(coco).__name__}")
    if not labelled:
        coco.setdefault("annotations", [])
    return coco


def form_faults(coco: Coco, optional: Collection[str] = ("annotations",)) -> Iterator[str]:
    """Find tables that are missing or empty, and entries with a missing or mistyped field.

    Args:
        optional: tables that may be empty, and fields that may be missing.
    """
    for table, fields in FIELDS.items():
        if not isinstance(coco.get(table), list):
            found = f"is a {type(coco[table]).__name__}" if table in coco else "is missing"
            yield f"{table!r} {found}, must be a list"
        elif not coco[table] and table not in optional:
            yield f"{table!r} is empty"
        else:
            for index, entry in enumerate(coco[table]):
                yield from _entry_faults(SINGULAR[table], index, entry, fields, optional)


def _entry_faults(
    kind: str,
    index: int,
    entry: Any,
    fields: Mapping[str, tuple[type, ...]],
    optional: Collection[str],
) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{kind} at index {index} is {entry!r:.60}, must be an object"
        return
    label = f"{kind} {entry['id']!r:.60}" if "id" in entry else f"{kind} at index {index}"
    for key, types in fields.items():
        if key not in entry:
            if key not in optional:
                yield f"{label} has no {key!r}"
        elif not isinstance(entry[key], types) or isinstance(entry[key], bool):
            wanted = " or ".join(TYPE_NAMES[t] for t in types if t is not tuple)
            yield f"{label}: {key!r} must be {wanted}, got {entry[key]!r:.60}"
        elif isinstance(entry[key], Integral) and not is_number(entry[key]):
            yield f"{label}: {key!r} is {entry[key]!r:.60}, must be below {LARGEST}"


def content_faults(
    coco: Coco, needs: Needs, tolerated: Collection[str] = (), *, in_json: bool = True
) -> Iterator[str]:
    """Find ids used twice, unknown images and categories, and faulty boxes, masks and keypoints.

    Args:
        coco: a file of the right form (see `form_faults`).
        needs: what the dataset is used for.
        tolerated: see `metadata`; boxes without area must be taken out before.
        in_json: whether evaluation reads the annotations as they are. Detectron2 makes a JSON of
            its own where there is none.
    """
    for table, kind in SINGULAR.items():
        if table == "annotations" and REPEATED_IDS in tolerated:
            continue
        for entry_id, uses in Counter(entry["id"] for entry in coco[table]).items():
            if uses > 1:
                yield f"{kind} id {entry_id!r} is used {uses} times"
    if len({isinstance(image["id"], str) for image in coco["images"]}) > 1:
        yield "some image ids are text and some are numbers; Detectron2 cannot sort them"
    images = {image["id"]: image for image in coco["images"]}
    categories = {category["id"] for category in coco["categories"]}
    for image in coco["images"]:
        if min(image.get("width", 1), image.get("height", 1)) < 1:
            size = f"{image['width']}x{image['height']}"
            yield f"image {image['id']!r} ({image['file_name']}): size {size} px is not positive"
    for annotation in coco["annotations"]:
        label = f"annotation {annotation['id']!r}"
        image = images.get(annotation["image_id"])
        if image is None:
            yield f"{label}: image_id {annotation['image_id']!r} is not among the images"
            continue
        label += f" of image {image['id']!r} ({image['file_name']})"
        for fault in _annotation_faults(annotation, image, needs, tolerated, in_json):
            yield f"{label}: {fault}"
        category = annotation.get("category_id")
        if category is not None and category not in categories:
            yield f"{label}: category_id {category} is not listed in 'categories'"


def _annotation_faults(
    annotation: dict[str, Any],
    image: dict[str, Any],
    needs: Needs,
    tolerated: Collection[str],
    in_json: bool,
) -> Iterator[str]:
    if annotation.get("iscrowd", 0) not in (0, 1):
        yield f"iscrowd is {annotation['iscrowd']!r:.60}, must be 0 or 1"
        return
    if annotation.get("ignore", 0) != 0:
        yield f"'ignore' is {annotation['ignore']!r:.60}, which Detectron2 refuses; use 'iscrowd'"
    if "bbox" in annotation:
        yield from _box_faults(annotation["bbox"], image)
    yield from mask_faults(annotation, image, needs, short_polygons=EMPTY_BOXES in tolerated)
    yield from keypoint_faults(annotation, needs)
    if needs.evaluated and in_json:
        if isinstance(annotation["id"], str):
            yield "its id is a text, but COCO evaluation needs an integer"
        for key in ("area", "iscrowd"):
            if not is_number(annotation.get(key)):
                found = repr(annotation[key])[:60] if key in annotation else "missing"
                yield f"{key!r} is {found}, but COCO evaluation needs a number"


def _box_faults(box: Any, image: dict[str, Any]) -> Iterator[str]:
    if not is_box(box):
        yield f"box {box!r:.100} must be 4 finite numbers (x, y, width, height)"
        return
    x, y, w, h = box
    width, height = image.get("width", LARGEST), image.get("height", LARGEST)
    if w <= 0 or h <= 0:
        yield f"box {box} has no positive area"
    elif min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        yield f"box {box} (x, y, width, height) is outside its {width}x{height} px image"


def without_empty_boxes(coco: Coco) -> Coco:
    """Return a copy (sharing its entries) without annotations whose box has no positive area."""
    kept = [a for a in coco["annotations"] if not is_box(a["bbox"]) or min(a["bbox"][2:]) > 0]
    return {**coco, "annotations": kept}
