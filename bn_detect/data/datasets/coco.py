"""COCO's published files, which Detectron2 registers itself: which of their faults are tolerated.

The published files have a few boxes without area. They are what everybody trains on, and Detectron2
drops such boxes as it loads an image. The two minivals of 2014 use annotation ids twice, which
Detectron2 tolerates, and the test sets come without annotations.
"""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

from ..metadata import EMPTY_BOXES, REPEATED_IDS, UNLABELLED


def mark_published(name: str, folder: Path, *, replace: bool = True) -> list[str]:
    """Note in the metadata of Detectron2's own COCO datasets which faults are to be expected.

    The arguments are those of every `Dataset.register`, and are not used: Detectron2 has registered
    these datasets when it was imported.

    Returns:
        the datasets that were marked now.
    """
    files = {
        name: json_file
        for splits in builtin._PREDEFINED_SPLITS_COCO.values()
        for name, (_, json_file) in splits.items()
    }
    for panoptic in builtin._PREDEFINED_SPLITS_COCO_PANOPTIC:
        json_file = files[panoptic.removesuffix("_panoptic")]
        files |= {panoptic: json_file, f"{panoptic}_separated": json_file}
    marked = []
    for dataset, json_file in files.items():
        metadata = MetadataCatalog.get(dataset) if dataset in DatasetCatalog else None
        if metadata is None or not str(metadata.get("json_file")).endswith(json_file):
            continue  # somebody registered another dataset under this name
        if metadata.get("tolerated") is None:
            special = [REPEATED_IDS] * ("minival" in json_file)
            special += [UNLABELLED] * ("image_info_test" in json_file)
            metadata.set(tolerated=(EMPTY_BOXES, *special))
            marked.append(dataset)
    return marked
