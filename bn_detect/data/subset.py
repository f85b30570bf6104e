"""Register a part of a registered dataset under the name NAME@N."""

from detectron2.data import DatasetCatalog

from .metadata import share_metadata

# Without json_file, Detectron2's evaluator makes the ground truth from the images chosen.
OF_ALL_IMAGES = ("json_file", "image_root")


def register_subset(whole: str, number: str) -> None:
    """Register NAME@N: N images of dataset NAME, evenly spread over it.

    To evaluate on a part of a training set: DATASETS.TEST "('coco_2017_train@5000',)".

    Raises:
        ValueError: N is not a positive number. An N above the number of NAME's images is found when
            the dataset is read.
    """
    name = f"{whole}@{number}"
    if not number.isdigit() or int(number) < 1:
        raise ValueError(f"dataset {name!r}: after @ stands a number of images, at least 1")
    DatasetCatalog.register(name, lambda: _evenly(whole, name, int(number)))
    share_metadata(whole, name, without=OF_ALL_IMAGES)


def _evenly(whole: str, name: str, number: int) -> list[dict]:
    dicts = DatasetCatalog.get(whole)
    share_metadata(whole, name, without=OF_ALL_IMAGES)
    if number > len(dicts):
        raise ValueError(f"dataset {name!r}: {whole} has {len(dicts)} images only")
    return [dicts[i * len(dicts) // number] for i in range(number)]
