"""Import any COCO-format folder, such as an export of Roboflow: checked, copied and registered.

The copy lies among the other prepared datasets, so studies and trainings find it by its name.
"""

import hashlib
import itertools
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as mask_util

from ..checks.check import raise_faults
from ..checks.coco_content import Coco, content_faults, form_faults, read_coco_json
from ..checks.image_files import image_faults
from ..checks.needs import Needs
from ..errors import DatasetError
from ..options import Options, option
from ..registration import SPLITS
from .coco_writer import Sample, write_split

COPY = re.compile(r"\.rf\.[0-9a-f]+(?=\.\w+$)")  # by which Roboflow names the copies of an image
NOTES = ("README*", "LICEN[SC]E*", "ATTRIBUTION*")  # files kept in SOURCE.md
LONGEST_NOTE = 20_000  # characters


@dataclass(frozen=True)
class ImportOptions(Options):
    """Options of an import: which files, and how they are divided.

    Raises:
        ValueError: a value outside its range, or no images or annotations are given.
    """

    images: str = option("", "folder of the images", required=True)
    annotations: tuple[str, ...] = option(
        (),
        "COCO JSON of all images, or one for training and one for validation",
        required=True,
    )
    max_side: int = option(0, "longest side of an image, px; 0 copies them as they are", low=0)
    val_fraction: float = option(
        0.25, "share of the images for validation, of one JSON", low=0.001, high=0.9
    )
    classes: str = option("category", "what the classes are", choices=("category", "supercategory"))
    licence: str = option("", "licence and attribution of the source, kept in SOURCE.md")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.annotations) > len(SPLITS):
            raise ValueError(
                f"annotations must be one file or two (training, validation), got "
                f"{len(self.annotations)}"
            )
        object.__setattr__(self, "images", os.path.abspath(self.images))
        files = tuple(os.path.abspath(file) for file in self.annotations)
        object.__setattr__(self, "annotations", files)


def prepare(folder: Path, name: str, options: ImportOptions) -> dict[str, Any]:
    """Write SPLIT/, annotations/NAME_SPLIT.json, overview_SPLIT.png and SOURCE.md.

    Boxes, polygons, run-length encodings and keypoints are resized with their image. An image keeps
    its further entries, such as its licence, and has its name in the source as `source_name`.

    Returns:
        the source and the counts of each split.

    Raises:
        DatasetError: the annotations or images are missing or faulty, or the categories of the two
            files differ.
    """
    sources = [_checked(Path(file), Path(options.images)) for file in options.annotations]
    classes, tables = _classes(sources, options)
    (folder / "SOURCE.md").write_text(_source_text(sources, options))
    if len(sources) == 1:
        sources, tables = _divided(sources[0], options), tables * 2
    counts = {}
    for split, coco, names in zip(SPLITS, sources, tables, strict=True):
        convert = partial(_sample, names=names, classes=classes, max_side=options.max_side)
        objects: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in coco["annotations"]:
            objects[annotation["image_id"]].append(annotation)
        samples = (
            convert(i, image, objects[image["id"]]) for i, image in enumerate(coco["images"])
        )
        counts[split] = write_split(
            folder,
            name,
            split,
            classes,
            samples,
            length=len(coco["images"]),
            info={"description": f"{name}: imported, {options.recorded()}"},
            licenses=coco.get("licenses", []),
        )
    sums = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in options.annotations]
    return {"source": {"annotations_sha256": sums}, "counts": counts}


def _checked(file: Path, folder: Path) -> Coco:
    """Read a COCO JSON and check it and its images; the file names become absolute paths."""
    for kind, path in (("annotations", file), ("images", folder)):
        if not path.exists():
            raise DatasetError(f"--{kind} {path}: it does not exist")
    coco = read_coco_json(file)
    check = partial(raise_faults, f"--annotations {file}")
    check(form_faults(coco))
    check(content_faults(coco, Needs(mask_format="bitmask")))
    for image in coco["images"]:
        relative = image["file_name"]
        places = (folder / relative, file.parent / relative, folder / Path(relative).name)
        found = next((path for path in places if path.exists()), places[0])
        image |= {"file_name": str(found), "source_name": relative}
    check(image_faults(coco["images"], Path(), Needs(), decode=True, label=f"checking {file.name}"))
    return coco


def _classes(sources: list[Coco], options: ImportOptions) -> tuple[list[str], list[dict[int, str]]]:
    """Return the class names and, for each source, the class of each category id.

    A category that only groups others, as Roboflow's first does, is left out.
    """
    used = {a["category_id"] for coco in sources for a in coco["annotations"]}
    tables = []
    for coco, file in zip(sources, options.annotations, strict=True):
        groups = {category.get("supercategory") for category in coco["categories"]}
        table = {}
        for category in sorted(coco["categories"], key=lambda c: c["id"]):
            if category["name"] in groups and category["id"] not in used:
                continue
            key = "name" if options.classes == "category" else "supercategory"
            if not isinstance(category.get(key), str):
                raise DatasetError(
                    f"--annotations {file}: category {category['id']} has no {key!r}; "
                    "use --classes category"
                )
            table[category["id"]] = category[key]
        tables.append(table)
    classes = list(dict.fromkeys(tables[0].values()))
    for table, file in zip(tables, options.annotations, strict=True):
        if set(table.values()) != set(classes):
            differing = ", ".join(sorted(set(table.values()) ^ set(classes))[:5])
            raise DatasetError(
                f"--annotations {file}: its classes are not those of {options.annotations[0]}; "
                f"they differ in {differing}"
            )
    return classes, tables


def _divided(coco: Coco, options: ImportOptions) -> list[Coco]:
    """Divide the images at random, always in the same way; copies of an image stay together."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for image in coco["images"]:
        groups.setdefault(COPY.sub("", image["source_name"]), []).append(image)
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    number = min(max(1, round(options.val_fraction * len(order))), len(order) - 1)
    if number < 1:
        raise DatasetError(
            f"--annotations {options.annotations[0]}: it has one image only, which cannot be "
            "divided into training and validation; give two files"
        )
    held_out = {image["id"] for name in order[:number] for image in groups[name]}
    return [
        {
            **coco,
            "images": [i for i in coco["images"] if (i["id"] in held_out) == validation],
            "annotations": [
                a for a in coco["annotations"] if (a["image_id"] in held_out) == validation
            ],
        }
        for validation in (False, True)
    ]


def _sample(
    number: int,
    image: dict[str, Any],
    objects: list[dict[str, Any]],
    *,
    names: dict[int, str],
    classes: list[str],
    max_side: int,
) -> Sample:
    """Return an image and its objects, resized where it is larger than `max_side`."""
    path, width, height = Path(image["file_name"]), image["width"], image["height"]
    scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    scales = size[0] / width, size[1] / height
    fields = {
        key: value
        for key, value in image.items()
        if key not in ("id", "file_name") and isinstance(value, str | int | float | None)
    }
    fields |= {"file_name": f"{number:06d}{path.suffix.lower()}"}
    fields |= {"width": size[0], "height": size[1]}
    converted = [
        _object(each, scales, size, classes.index(names[each["category_id"]]) + 1)
        for each in objects
    ]
    if scale == 1:
        return Sample(path, converted, fields)
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    return Sample(upright.resize(size, Image.Resampling.LANCZOS), converted, fields)


def _object(
    annotation: dict[str, Any], scales: tuple[float, float], size: tuple[int, int], category: int
) -> dict[str, Any]:
    """Return an annotation in the resized image, its box clipped to it."""
    x, y, width, height = annotation["bbox"]
    corners = np.array([x, y, x + width, y + height]) * (*scales, *scales)
    x0, y0, x1, y1 = np.clip(corners, 0, [*size, *size]).round(3).tolist()
    made = {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "category_id": category,
        "iscrowd": annotation.get("iscrowd", 0),
    }
    if isinstance(annotation.get("area"), int | float):
        made["area"] = annotation["area"] * scales[0] * scales[1]
    if annotation.get("segmentation"):
        made["segmentation"] = _resized_mask(annotation["segmentation"], scales, size)
    if annotation.get("keypoints"):
        points = np.array(annotation["keypoints"], dtype=float).reshape(-1, 3) * (*scales, 1)
        made["keypoints"] = points.ravel().tolist()
        made["num_keypoints"] = int((points[:, 2] > 0).sum())
    return made


def _resized_mask(segmentation: Any, scales: tuple[float, float], size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):
        return [(np.array(p).reshape(-1, 2) * scales).ravel().tolist() for p in segmentation]
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    mask = Image.fromarray(mask_util.decode(segmentation)).resize(size, Image.Resampling.NEAREST)
    encoded = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _source_text(sources: list[Coco], options: ImportOptions) -> str:
    """Return where the images come from, and what the source says of itself and its licence."""
    lines = [f"Imported from {options.images} by", *options.annotations]
    lines += [f"licence: {options.licence}"] * bool(options.licence)
    for coco in sources:
        lines += [f"info: {coco.get('info')}", f"licenses: {coco.get('licenses')}"]
    folders = {Path(options.images), *(Path(file).parent for file in options.annotations)}
    folders |= {Path(options.images).parent}
    places = itertools.product(sorted(folders), NOTES)
    notes = [path for folder, pattern in places for path in sorted(folder.glob(pattern))]
    for path in filter(Path.is_file, notes):
        lines += ["", f"## {path.name}", "", path.read_text(errors="replace")[:LONGEST_NOTE]]
    return "\n".join(lines) + "\n"
