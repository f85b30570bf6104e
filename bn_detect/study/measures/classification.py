"""The measures "classification_error" and "training_error": top-1 errors of a classifier, percent.

Also how other measures get an error: on images in memory, under one or another kind of statistics.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from ...engine.classification_evaluator import TASK, ClassificationEvaluator
from ...layers.statistics import use_statistics
from ...modeling import BNImageClassifier
from ...population import update_population_stats
from ...population.undisturbed import kept_buffers
from ...reporting.columns import Column, Result, at
from .measure import Measure, Options
from .subject import Images, Subject

WHOLE = 64  # images of a batch where the normalization batch makes no difference
ONE_BATCH = {"batch": "worker", "virtual_workers": 1}  # every batch is one group
ERRORS = {
    "train_minibatch": "training set, mini-batch statistics",
    "val_minibatch": "validation, mini-batch statistics",
    "val_population": "validation, population statistics (moving average)",
    "val_precise_own": "validation, PreciseBN in training's normalization batches",
    "val_precise": "validation, PreciseBN",
    "train_precise": "training set, PreciseBN",
}


def in_batches(images: Sequence[dict[str, Any]], size: int = WHOLE) -> list[Images]:
    """Split into batches of consecutive images; the last one may be smaller."""
    return [list(images[i : i + size]) for i in range(0, len(images), size)]


@torch.no_grad()
def error(model: nn.Module, batches: Sequence[Images], *, images_per_group: int = 0) -> float:
    """Return the top-1 error in percent.

    Args:
        images_per_group: normalize so many consecutive images of a batch with their own statistics;
            0: with the population statistics that the model holds.
    """
    groups = {"test_images_per_group": images_per_group} if images_per_group else {}
    evaluator, mode = ClassificationEvaluator(), model.training
    evaluator.reset()
    model.eval()
    with use_statistics(model, "minibatch" if groups else "population", **groups):
        for batch in batches:
            evaluator.process(batch, model(batch))
    model.train(mode)
    return evaluator.evaluate()[TASK]["top1_error"]


@contextlib.contextmanager
def precise(model: nn.Module, batches: Sequence[Images], **settings: Any) -> Iterator[None]:
    """Give the model PreciseBN statistics of `batches`, without using labels, and take them back.

    Args:
        settings: of the normalization batch during the pass; none: those of training.
    """
    with kept_buffers(model):
        with use_statistics(model, **settings):
            update_population_stats(
                model,
                batches,
                len(batches),
                roi_source="test",
                images_per_group=None,
                progress=False,
            )
        yield


def classification_error(
    subject: Subject, options: Options, kept: Result
) -> Iterator[dict[str, Any]]:
    """Yield the errors that `options["errors"]` names, of `ERRORS`.

    Mini-batches at inference hold MODEL.ROI_BN.TEST_IMAGES_PER_GROUP images. For each of
    `options["precise_batches"]`, yield the error under a PreciseBN pass in batches of that size.
    """
    model, wanted = subject.model, options["errors"] or list(ERRORS)
    size = subject.cfg.MODEL.ROI_BN.TEST_IMAGES_PER_GROUP
    names = {"train": subject.cfg.DATASETS.TRAIN[0], "val": subject.cfg.DATASETS.TEST[0]}
    batches = {split: in_batches(subject.images(name)) for split, name in names.items()}

    def errors(*keys: str, **how: Any) -> dict[str, float]:
        return {k: error(model, batches[k.split("_")[0]], **how) for k in keys if k in wanted}

    yield errors("train_minibatch", "val_minibatch", images_per_group=size)
    yield errors("val_population")
    if "val_precise_own" in wanted:
        with precise(model, batches["train"]):
            yield errors("val_precise_own")
    if "val_precise" in wanted or "train_precise" in wanted:
        with precise(model, batches["train"], **ONE_BATCH):
            yield errors("val_precise", "train_precise")
    for number in options["precise_batches"]:
        train = in_batches(subject.images(names["train"]), number * max(1, WHOLE // number))
        with precise(model, train, batch="images", images_per_group=number):
            yield {precise_key(number): error(model, batches["val"])}


def precise_key(number: int) -> str:
    """Return the key of the error under a PreciseBN pass in batches of so many images."""
    return f"val_precise_{number}"


def _pass_columns(options: Options) -> tuple[Column, ...]:
    keys = {number: precise_key(number) for number in options["precise_batches"]}
    return tuple(
        Column(
            key,
            f"PreciseBN in batches of {number} (%)",
            1,
            at(key),
            f"Top-1 error on validation images after a PreciseBN pass in batches of {number}.",
            shown=False,
        )
        for number, key in keys.items()
    )


def check_classifier(cfg: CfgNode, model: nn.Module, options: Options) -> None:
    """Raise ValueError for a model that is no image classifier, and for errors of other names."""
    if not isinstance(model, BNImageClassifier):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; this measure needs a "
            "classifier, 'BNImageClassifier'"
        )
    if unknown := set(options.get("errors", ())) - ERRORS.keys():
        raise ValueError(f"errors: {sorted(unknown)[0]!r}; known: {', '.join(ERRORS)}")
    for number in options.get("precise_batches", ()):
        if type(number) is not int or number < 1:
            raise ValueError(f"precise_batches holds {number!r}; it may hold numbers from 1 up")


class TrainingError(HookBase):
    """Keep the mean error of the training batches, as trained on, over the last part of a run.

    Args:
        share: the part that counts, of all iterations.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._errors: list[float] = []

    def after_step(self) -> None:
        whole = self.trainer.max_iter
        if self.trainer.iter >= max(1, whole - round(whole * self._share)):
            self._errors.append(self.trainer.storage.latest()["classifier/error"][0])

    @property
    def result(self) -> dict[str, float]:
        return {"training": sum(self._errors) / max(1, len(self._errors))}

    def state_dict(self) -> dict[str, Any]:
        return {"errors": self._errors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._errors = list(state["errors"])


def followed(name: str) -> Any:
    """Return the `take` of a measure whose hook has measured it during training."""

    def take(subject: Subject, options: Options, kept: Result) -> Iterator[dict[str, Any]]:
        yield subject.followed[name]

    return take


MEASURE = Measure(
    classification_error,
    columns=tuple(
        Column(key, f"{words} (%)", 1, at(key), f"Top-1 error: {words}.")
        for key, words in ERRORS.items()
    ),
    columns_for=_pass_columns,
    options={"errors": [], "precise_batches": []},
    check=check_classifier,
    reads=("TEST", "TRAIN"),
)
TRAINING_ERROR = Measure(
    followed("training_error"),
    columns=(
        Column(
            "training_error",
            "training, last part (%)",
            1,
            at("training"),
            "Top-1 error on the training batches as trained on, over the last part of training.",
        ),
    ),
    options={"share": 0.2},
    check=check_classifier,
    follow=lambda cfg, options: TrainingError(options["share"]),
)
