"""Make a prepared dataset known to Detectron2 by name."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .prepared import default_root


def register_prepared(
    name: str,
    splits: tuple[str, ...],
    root: str | Path | None = None,
    *,
    replace: bool = True,
    **metadata,
) -> None:
    """Register `name`_train, ...; nothing is read before they are used.

    Registering the same place again does nothing; another place replaces the one before.

    Args:
        root: the folder that holds (or will hold) `name`/; default: $DETECTRON2_DATASETS, or
            ./datasets.
        replace: False: leave what has one of these names already, whoever registered it.
    """
    folder = (Path(root) if root is not None else default_root()) / name
    for split in splits:
        dataset = f"{name}_{split}"
        json_file = str(folder / "annotations" / f"{dataset}.json")
        if make_way(dataset, "json_file", json_file, replace=replace):
            register_coco_instances(dataset, metadata, json_file, str(folder / split))


def make_way(dataset: str, key: str, place: str, *, replace: bool) -> bool:
    """Whether `dataset` is to be registered now; its old registration is then removed.

    It is where it is not registered, or under `replace` for another place than `place`, which its
    metadata hold as `key`.
    """
    if dataset not in DatasetCatalog:
        return True
    if not replace or MetadataCatalog.get(dataset).get(key) == place:
        return False
    DatasetCatalog.remove(dataset)
    MetadataCatalog.remove(dataset)
    return True
