"""A part of a registered dataset, under a name of its own: NAME@N."""

import re
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog


def register_subsets(names: Sequence[str]) -> None:
    """Register every name of the form NAME@N: N images of dataset NAME, evenly spread over it.

    To evaluate on a part of a training set: DATASETS.TEST "('coco_2017_train@5000',)". Other names
    and those already registered are left alone.

    Raises:
        ValueError: N is not a positive number (when the dataset is read: or exceeds NAME's images).
    """
    for name in names:
        match = re.fullmatch(r"(.+)@(.*)", name)
        if not match or name in DatasetCatalog:
            continue
        whole, number = match.groups()
        if not number.isdigit() or int(number) < 1:
            raise ValueError(f"dataset {name!r}: after @ stands a number of images, at least 1")
        DatasetCatalog.register(name, lambda w=whole, n=int(number): _evenly(w, n))
        # Without json_file, Detectron2's evaluator makes the ground truth from the images chosen.
        metadata = MetadataCatalog.get(whole).as_dict()
        kept = {k: v for k, v in metadata.items() if k not in ("name", "json_file", "image_root")}
        MetadataCatalog.get(name).set(**kept)


def _evenly(whole: str, number: int) -> list[dict]:
    every = DatasetCatalog.get(whole)
    metadata = MetadataCatalog.get(whole).as_dict()  # reading a COCO file adds its classes
    subset = MetadataCatalog.get(f"{whole}@{number}")
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        if key in metadata and not hasattr(subset, key):
            subset.set(**{key: metadata[key]})
    if number > len(every):
        raise ValueError(f"dataset '{whole}@{number}': {whole} has {len(every)} images only")
    return [every[i * len(every) // number] for i in range(number)]
