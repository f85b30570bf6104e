"""A torchvision detector from a checkpoint file, and batches from a folder in COCO's format.

Needs torch and torchvision alone.
"""

import difflib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import to_tensor

from ...runtime.model_state import load_whole, read_state

Batch = tuple[list[Tensor], list[dict[str, Any]]]
_CLASSES = "roi_heads.box_predictor.cls_score.weight"


def load_detector(
    name: str,
    weights: str | Path,
    *,
    num_classes: int | None = None,
    min_size: int | None = None,
    trust: bool = False,
) -> nn.Module:
    """Build a detector of torchvision and load a checkpoint into it.

    Args:
        name: such as "fasterrcnn_resnet50_fpn_v2".
        weights: a file with the model's state, by itself or as the entry "model" or "state_dict".
        num_classes: background counts; None: as many as the checkpoint has.
        min_size: of its resizing, in pixels; None: torchvision's, which is 800.
        trust: load the file even where that executes code.

    Raises:
        ValueError: torchvision has no such model, or the file is not of this model.
    """
    known = [each for each in models.list_models(module=models.detection) if "rcnn" in each]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"; did you mean {near[0]}?" if near else f"; it must be of {', '.join(known)}"
        raise ValueError(f"--torchvision is {name!r}{advice}")
    state = _plain(read_state(weights, trust=trust)[1])
    found = len(state[_CLASSES]) if _CLASSES in state else None
    if num_classes is not None and found is not None and num_classes != found:
        raise ValueError(
            f"--num-classes is {num_classes}, but the head in {weights} has {found} classes, "
            "background included"
        )
    sizes = {} if min_size is None else {"min_size": min_size}
    classes = num_classes or found
    count = {} if classes is None else {"num_classes": classes}
    model = models.get_model(name, weights=None, weights_backbone=None, **count, **sizes)
    load_whole(model, state, f"--weights {weights} does not fit {name}", exact=True)
    detector: nn.Module = model
    return detector


def _plain(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state, without what wrappers put before their names:
    DistributedDataParallel, and Lightning's usual attribute."""
    state = {key: value for key, value in state.items() if torch.is_tensor(value)}
    for prefix in ("module.", "model.", "detector."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


class CocoFolder:
    """Batches of (images, targets) from a folder in COCO's format, the same ones in every pass.

    As in torchvision's reference training, crowds, boxes without area and images without objects
    are left out, and labels are the category ids. Where these do not fit the classes of the model,
    the categories count from 1 in the order of their ids; `classes` has the name of each label.

    Args:
        folder: has the images, and one JSON file, by itself or in `annotations`.
        annotations: the JSON file, where there are several.
        num_classes: of the model, with background.
        images_per_batch: images that do not fill a batch are left out.
        masks: give empty masks along, which mask heads ask for.
        seed: of the order.

    Raises:
        ValueError: a file is missing or is no COCO JSON, the classes do not fit, or there are fewer
            images than two batches need.
    """

    def __init__(
        self,
        folder: str | Path,
        annotations: str | Path | None = None,
        *,
        num_classes: int,
        images_per_batch: int,
        masks: bool = False,
        seed: int = 0,
    ) -> None:
        self._size, self._masks = images_per_batch, masks
        path = _json_file(Path(folder), annotations)
        content = _read(path)
        objects = defaultdict(list)
        for each in content["annotations"]:
            if not each.get("iscrowd") and min(each["bbox"][2:]) > 0:
                objects[each["image_id"]].append(each)
        used = {each["category_id"] for found in objects.values() for each in found}
        self._labels = _labels(path, content["categories"], used, num_classes)
        self.classes = ["background"] + ["-"] * (num_classes - 1)
        for category in content["categories"]:
            if category["id"] in self._labels:
                self.classes[self._labels[category["id"]]] = str(category.get("name", "-"))
        self._images = [
            (_image_file(Path(folder), path, image["file_name"]), objects[image["id"]])
            for image in content["images"]
            if objects.get(image["id"])
        ]
        if len(self) < 2:
            raise ValueError(
                f"{path} has {len(self._images)} images with objects; a probe needs two batches of "
                f"{images_per_batch} images"
            )
        generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(self._images), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self._images) // self._size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self) * self._size, self._size):
            pairs = [self._read(*self._images[i]) for i in self._order[start : start + self._size]]
            yield [image for image, _ in pairs], [target for _, target in pairs]

    def _read(self, file: Path, objects: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Any]]:
        with Image.open(file) as opened:
            image = to_tensor(opened.convert("RGB"))
        boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(0, image.shape[2])
        boxes[:, 1::2].clamp_(0, image.shape[1])
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        labels = torch.tensor([self._labels[each["category_id"]] for each in objects])
        target = {"boxes": boxes[keep], "labels": labels[keep], "file_name": str(file)}
        if self._masks:
            target["masks"] = torch.zeros(int(keep.sum()), *image.shape[1:], dtype=torch.uint8)
        return image, target


def _json_file(folder: Path, annotations: str | Path | None) -> Path:
    if not folder.is_dir():
        raise ValueError(f"--coco-folder {folder}: no such folder")
    if annotations is not None:
        for path in (Path(annotations), folder / annotations):
            if path.is_file():
                return path
        raise ValueError(f"--annotations {annotations}: no such file, nor in {folder}")
    found = sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise ValueError(
            f"--coco-folder {folder} must have one JSON file, by itself or in annotations, and has "
            f"{names}; name one by --annotations"
        )
    return found[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        for part, keys in (
            ("images", ("id", "file_name")),
            ("categories", ("id",)),
            ("annotations", ("image_id", "category_id", "bbox")),
        ):
            for each in content[part]:
                for key in keys:
                    each[key]
        boxes = [each["bbox"] for each in content["annotations"]]
        if any(len(box) != 4 or min(map(float, box)) < -1e6 for box in boxes):
            raise ValueError("a bbox is not [x, y, width, height]")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        name = type(error).__name__
        raise ValueError(f"{path} is no JSON in COCO's format: {name}: {error}") from error
    found: dict[str, Any] = content
    return found


def _labels(
    path: Path, categories: list[dict[str, Any]], used: set[Any], num_classes: int
) -> dict[Any, int]:
    """Return the label of each category id; see `CocoFolder`."""
    if used and all(type(each) is int and 0 < each < num_classes for each in used):
        return {each: each for each in used}
    ids = [each["id"] for each in categories]
    # A category that only groups the others, as Roboflow's first does, is no class.
    groups = {each.get("supercategory") for each in categories}
    ids = sorted(c["id"] for c in categories if c["id"] in used or c.get("name") not in groups)
    if not used <= set(ids) or len(ids) != num_classes - 1:
        raise ValueError(
            f"{path} has {len(ids)} categories with ids {ids[:5]}{'...' if ids[5:] else ''}, and "
            f"the model has {num_classes - 1} classes beside background: category ids must be "
            f"below {num_classes}, or there must be {num_classes - 1} of them"
        )
    return {category: number for number, category in enumerate(ids, 1)}


def _image_file(folder: Path, json_file: Path, name: str) -> Path:
    split = json_file.stem.split("_")[-1]  # instances_val2017.json
    places = (folder, json_file.parent, folder / "images", folder / split)
    for place in places:
        if (place / name).is_file():
            return place / name
    raise ValueError(
        f"{json_file}: the image {name} is in none of {', '.join(dict.fromkeys(map(str, places)))}"
    )
