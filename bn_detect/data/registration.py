"""Make a prepared dataset known to Detectron2 by name."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .prepared import default_root


def register_prepared(
    name: str, splits: tuple[str, ...], root: str | Path | None = None, **metadata
) -> None:
    """Register `name`_train, ...; nothing is read before they are used.

    Registering the same place again does nothing; another place replaces the one before.

    Args:
        root: the folder that holds (or will hold) `name`/; default: $DETECTRON2_DATASETS, or
            ./datasets.
    """
    folder = (Path(root) if root is not None else default_root()) / name
    for split in splits:
        dataset = f"{name}_{split}"
        json_file = str(folder / "annotations" / f"{dataset}.json")
        if dataset in DatasetCatalog:
            if MetadataCatalog.get(dataset).json_file == json_file:
                continue
            DatasetCatalog.remove(dataset)
            MetadataCatalog.remove(dataset)
        register_coco_instances(dataset, metadata, json_file, str(folder / split))
