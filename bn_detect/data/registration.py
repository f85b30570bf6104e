"""Make NEON trees known to Detectron2 by name."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .neon_trees import FOLDER, SPLITS, default_root


def register_neon_trees(root: str | None = None) -> None:
    """Register `neon_trees_train` and `neon_trees_val`; nothing is read before they are used.

    Registering the same place again does nothing; another place replaces the one before.

    Args:
        root: the folder that holds (or will hold) neon_trees/; default: $DETECTRON2_DATASETS, or
            ./datasets.
    """
    folder = (Path(root) if root is not None else default_root()) / FOLDER
    for split in SPLITS:
        name = f"{FOLDER}_{split}"
        json_file = str(folder / "annotations" / f"{name}.json")
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).json_file == json_file:
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        metadata = {"thing_classes": ["tree"]}
        register_coco_instances(name, metadata, json_file, str(folder / split))
