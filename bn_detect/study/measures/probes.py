"""The registered probes as measures of a study: whatever `bn_detect.probes.registry` lists."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from ...data import DatasetSummary, register_derived
from ...engine.evaluation import evaluate_under
from ...engine.trainer import BNTrainer
from ...probes.adapters import find_head
from ...probes.registry import PROBES, Probe
from ...reporting.columns import Result
from .measure import CheckImages, Measure, Options, Take
from .subject import Subject

AP_IMAGES = 500  # of the training set
# What a probe may ask for by the names of its arguments, beside model, loader and batches.
Arguments = dict[str, Callable[[Subject], Any]]


def _take(name: str, probe: Probe) -> Take:
    def take(subject: Subject, options: Options, kept: Result) -> Iterator[dict[str, Any]]:
        by_split = {n: subject.loader(key) for n, key in _SPLITS.items() if key in probe.splits}
        loaders: Any = by_split if len(by_split) > 1 else by_split["val"]
        more = {key: _ARGUMENTS[key](subject) for key in probe.arguments}
        batches = subject.batches(probe.images, *by_split.values())
        report = probe.function(
            subject.model, loaders, batches, partition=subject.partition, **more
        )
        print(f"{name}\n{report}\n", flush=True)
        yield {**_absolute(dataclasses.asdict(report)), "classes": subject.classes}

    return take


def _absolute(tree: Any) -> Any:
    """Return a report with whole paths of image files, which another folder can use."""
    if isinstance(tree, dict):
        return {key: _absolute(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_absolute(item) for item in tree]
    return os.path.abspath(tree) if isinstance(tree, str) and os.path.isfile(tree) else tree


_SPLITS = {"train": "TRAIN", "val": "TEST"}


def _evaluator(subject: Subject) -> Callable[[str], dict[str, dict[str, float]]] | None:
    """Return what gives the AP of a kind on validation images and on part of the training set."""
    known = subject.results.get("evaluation", {})
    if not any("bbox" in tasks for tasks in known.get("population", {}).values()):
        return None
    cfg = subject.cfg.clone()
    val, train = cfg.DATASETS.TEST[0], cfg.DATASETS.TRAIN[0]
    images = min(AP_IMAGES, len(DatasetCatalog.get(val)), len(DatasetCatalog.get(train)))
    part = f"{train}@{images}"
    register_derived([part])
    cfg.DATASETS.TEST = (part,)

    @functools.cache
    def measured(kind: str) -> dict[str, dict[str, float]]:
        on_train = evaluate_under(cfg, subject.model, [kind])[kind][part]
        both = {"train": on_train, "val": known[kind][val]}
        return {split: {m: r["bbox"][m] for m in ("AP", "AP50")} for split, r in both.items()}

    # A kind that does not differ for this model was not evaluated.
    return lambda kind: measured(kind if kind in known else "population")


_ARGUMENTS: Arguments = {
    "population_loader": lambda s: BNTrainer.build_population_loader(s.cfg, s.cfg.SEED),
    "population_batches": lambda s: s.cfg.TEST.PRECISE_BN.NUM_ITER,
    "evaluate": _evaluator,
}


def _check(cfg: CfgNode, model: nn.Module, options: Options) -> None:
    find_head(model)


def _check_images(probe: Probe) -> CheckImages:
    def check(
        cfg: CfgNode, options: Options, datasets: Mapping[str, DatasetSummary], workers: int
    ) -> None:
        needed = probe.batches * cfg.SOLVER.IMS_PER_BATCH
        for split in probe.splits:
            dataset = datasets[cfg.DATASETS[split][0]]
            left_out = dataset.empty_images if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else 0
            if dataset.images - left_out < needed:
                raise ValueError(
                    f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, and a probe needs "
                    f"{probe.batches} batches; {dataset.name} has "
                    f"{dataset.images - left_out} images to fill them"
                )

    return check


def measure_of(name: str, probe: Probe) -> Measure:
    """Return the measure that takes a probe."""
    return Measure(
        _take(name, probe),
        columns=probe.columns,
        figures=probe.figures,
        check=_check,
        check_images=_check_images(probe),
        reads=probe.splits,
        first=probe.first,
    )


MEASURES = {name: measure_of(name, probe) for name, probe in PROBES.items()}
