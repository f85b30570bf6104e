"""Make the datasets of a folder known to Detectron2 by name."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

SPLITS = ("train", "val")


def register_boxes(
    name: str, folder: Path, *, replace: bool = True, **metadata: object
) -> list[str]:
    """Register NAME_train and NAME_val: `folder`/SPLIT and `folder`/annotations/NAME_SPLIT.json.

    Nothing is read before they are used. Registering the same place again does nothing; another
    place replaces the one before.

    Args:
        replace: False leaves what has one of these names already, whoever registered it.
        metadata: for Detectron2's MetadataCatalog.

    Returns:
        the names that were registered now.
    """
    made = []
    for split in SPLITS:
        dataset = f"{name}_{split}"
        json_file = str(folder / "annotations" / f"{dataset}.json")
        if make_way(dataset, "json_file", json_file, replace=replace):
            register_coco_instances(dataset, metadata, json_file, str(folder / split))
            made.append(dataset)
    return made


def make_way(dataset: str, key: str, place: str, *, replace: bool) -> bool:
    """Remove the old registration of `dataset` where a new one is wanted; return whether it is.

    A new one is wanted if there is none, or if `replace` is set and the old one is of another place
    than `place`, which its metadata hold as `key`.
    """
    if dataset not in DatasetCatalog:
        return True
    if not replace or MetadataCatalog.get(dataset).get(key) == place:
        return False
    DatasetCatalog.remove(dataset)
    MetadataCatalog.remove(dataset)
    return True
