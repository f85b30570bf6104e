"""The error of a classifier on images in memory, under one or another kind of statistics."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..data import register_derived
from ..engine.classification_evaluator import TASK, ClassificationEvaluator
from ..layers.statistics import use_statistics
from ..modeling import BNImageClassifier
from ..population import update_population_stats
from ..population.undisturbed import kept_buffers
from .training import QuietTrainer

WHOLE = 64  # images of a batch where the normalization batch shall not matter
Batch = list[dict[str, Any]]


def images(cfg: CfgNode, name: str) -> Batch:
    """The images of a dataset in its order, mapped."""
    register_derived([name])
    mapper = QuietTrainer.build_mapper(cfg, is_train=False)
    return [mapper(d) for d in DatasetCatalog.get(name)]


def in_batches(of: Sequence[dict[str, Any]], size: int = WHOLE) -> list[Batch]:
    """Consecutive images; the last batch may be smaller."""
    return [list(of[i : i + size]) for i in range(0, len(of), size)]


@torch.no_grad()
def error(
    model: BNImageClassifier, batches: Sequence[Batch], *, images_per_group: int = 0
) -> float:
    """Top-1 error in percent.

    Args:
        images_per_group: normalize so many consecutive images of a batch with their own statistics;
            0: with the population statistics that the model holds.
    """
    changes = {"test_stats": "population"}
    if images_per_group:
        changes = {"test_stats": "minibatch", "test_images_per_group": images_per_group}
    evaluator, mode = ClassificationEvaluator(), model.training
    evaluator.reset()
    model.eval()
    with use_statistics(model, **changes):
        for batch in batches:
            evaluator.process(batch, model(batch))
    model.train(mode)
    return evaluator.evaluate()[TASK]["top1_error"]


@contextlib.contextmanager
def precise(model: BNImageClassifier, batches: Sequence[Batch], **changes: Any) -> Iterator[None]:
    """Within it, the population statistics are PreciseBN's over `batches`; no labels are used.

    Args:
        changes: of the normalization batch during the pass; none: that of training.
    """
    with kept_buffers(model):
        with use_statistics(model, **changes):
            update_population_stats(
                model,
                batches,
                len(batches),
                roi_source="test",
                images_per_group=None,
                progress=False,
            )
        yield


ONE_BATCH = {"batch": "worker", "virtual_workers": 1}  # changes: every batch is one group
