"""Find what cannot work in the config of an image classifier."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.datasets.image_folders import CLASSIFICATION

CLASSIFIER = "BNImageClassifier"


def check_classifier(cfg: CfgNode, changed: Sequence[str]) -> None:
    """Raise ValueError for the first setting that cannot work; other models may have none of them.

    Args:
        changed: keys of MODEL.ROI_BN that are not at their defaults, with their values.
    """
    classes = cfg.DATALOADER.CLASSES_PER_WORKER_BATCH
    if classes < 0:
        raise ValueError(
            f"DATALOADER.CLASSES_PER_WORKER_BATCH is {classes}; it must be a number of classes, or "
            "0 for images of any"
        )
    if cfg.MODEL.META_ARCHITECTURE != CLASSIFIER:
        if classes:
            raise ValueError(
                f"DATALOADER.CLASSES_PER_WORKER_BATCH is {classes}, but MODEL.META_ARCHITECTURE "
                f"is {cfg.MODEL.META_ARCHITECTURE!r}; only images of {CLASSIFIER!r} have a class"
            )
        return
    if changed and cfg.MODEL.RESNETS.NORM != "BN":
        raise ValueError(
            f"{', '.join(changed)}: set, but MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM!r}; a "
            "normalization batch needs 'BN'"
        )
    if cfg.MODEL.CLASSIFIER.NUM_CLASSES < 2:
        raise ValueError(
            f"MODEL.CLASSIFIER.NUM_CLASSES is {cfg.MODEL.CLASSIFIER.NUM_CLASSES}; it must be at "
            "least 2"
        )
    crop = cfg.INPUT.CROP
    if crop.ENABLED and (crop.TYPE != "absolute" or min(crop.SIZE) < 1):
        raise ValueError(
            f"INPUT.CROP.TYPE is {crop.TYPE!r} with SIZE {list(crop.SIZE)}; {CLASSIFIER} takes "
            "'absolute' with a size in pixels, such as [224, 224]"
        )
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        kind = MetadataCatalog.get(name).get("evaluator_type") if name in DatasetCatalog else None
        if name in DatasetCatalog and kind != CLASSIFICATION:
            raise ValueError(
                f"DATASETS: {name!r} has evaluator_type {kind!r}; {CLASSIFIER} takes "
                f"{CLASSIFICATION!r}, whose images have a class each"
            )


def check_classes(cfg: CfgNode) -> None:
    """Raise ValueError where a dataset, already read, has other classes than the classifier."""
    if cfg.MODEL.META_ARCHITECTURE != CLASSIFIER:
        return
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = MetadataCatalog.get(name).get("classes")
        if classes is not None and len(classes) != cfg.MODEL.CLASSIFIER.NUM_CLASSES:
            raise ValueError(
                f"MODEL.CLASSIFIER.NUM_CLASSES is {cfg.MODEL.CLASSIFIER.NUM_CLASSES}, but dataset "
                f"{name!r} has {len(classes)} classes"
            )
