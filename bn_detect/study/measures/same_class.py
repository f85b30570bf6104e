"""The measure "same_class_error": a classifier's error on mini-batches of one class, percent."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ...engine.same_class_sampler import SameClassSampler
from ...reporting.columns import Column, Result, at
from .classification import check_classifier, error, in_batches
from .measure import Measure, Options
from .subject import Images, Subject


def same_class_error(subject: Subject, options: Options, kept: Result) -> Iterator[dict[str, Any]]:
    """Yield the error where each worker's images are of one class and normalized by themselves."""
    cfg = subject.cfg
    workers = cfg.MODEL.ROI_BN.VIRTUAL_WORKERS
    size = cfg.SOLVER.IMS_PER_BATCH // workers
    images = subject.images(cfg.DATASETS.TEST[0])
    batches = same_class_batches(images, cfg.SOLVER.IMS_PER_BATCH, workers)
    yield {"val_same_class": error(subject.model, batches, images_per_group=size)}


def same_class_batches(images: Images, batch: int, workers: int) -> list[Images]:
    """Batch as many images as there are as in training: those of a worker are of one class."""
    size = batch // workers
    labels = [d["label"] for d in images]
    sampler = SameClassSampler(labels, 1, size, virtual_workers=workers)
    return in_batches([images[i] for i in islice(sampler, len(images) // size * size)], batch)


MEASURE = Measure(
    same_class_error,
    columns=(
        Column(
            "val_same_class",
            "validation, mini-batches of one class (%)",
            1,
            at("val_same_class"),
            "Top-1 error on validation images where each mini-batch holds one class, as in "
            "training on batches of one class.",
        ),
    ),
    check=check_classifier,
)
