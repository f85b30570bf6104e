"""The probes of a run's model, on its own datasets."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from .. import probes
from ..data import register_derived
from ..engine.evaluation import evaluate_under
from ..engine.trainer import BNTrainer
from ..layers import NormalizationBatch
from ..probes.adapters.detectron2_batches import ProbeLoader

IMAGES = 480  # of each probe, where the dataset has as many
JACOBIAN_IMAGES = 160  # its gradients take long
AP_IMAGES = 500  # of the training set


@dataclass(frozen=True)
class Subject:
    """What is probed: `found` is what measurements.json holds."""

    cfg: CfgNode
    model: nn.Module
    found: dict[str, Any]

    def loader(self, split: str = "TEST") -> ProbeLoader:
        """Batches of as many images as all workers have, of the split's first dataset."""
        name = self.cfg.DATASETS[split][0]
        return probes.probe_loader(self.cfg, name, self.cfg.SOLVER.IMS_PER_BATCH)

    @property
    def classes(self) -> list[str]:
        """Names of the classes of what is probed."""
        name = self.cfg.DATASETS.TEST[0]
        DatasetCatalog.get(name)  # which may be what sets the names
        return list(MetadataCatalog.get(name).get("thing_classes", []))

    @property
    def partition(self) -> NormalizationBatch:
        """The normalization batch that the head was trained with."""
        return probes.own_batch(self.model, self.cfg.MODEL.ROI_BN.VIRTUAL_WORKERS)

    def batches(self, images: int = IMAGES, splits: tuple[str, ...] = ("TEST",)) -> int:
        """How many batches hold so many images, or all there are."""
        there = min(len(self.loader(split)) for split in splits)
        return min(there, -(-images // self.cfg.SOLVER.IMS_PER_BATCH))


def _decomposition(subject: Subject) -> Any:
    cfg, model = subject.cfg, subject.model
    return probes.decomposition(
        model,
        {"train": subject.loader("TRAIN"), "val": subject.loader()},
        subject.batches(splits=("TRAIN", "TEST")),
        population_loader=BNTrainer.build_population_loader(cfg, cfg.SEED),
        population_batches=cfg.TEST.PRECISE_BN.NUM_ITER,
        partition=subject.partition,
        evaluate=_evaluator(subject) if "bbox" in _tasks(subject.found) else None,
    )


def _tasks(found: dict[str, Any]) -> set[str]:
    datasets = found["evaluation"].get("population", {}).values()
    return {task for results in datasets for task in results}


def _evaluator(subject: Subject) -> Callable[[str], dict[str, dict[str, float]]]:
    """AP of a kind on part of the training set; on the validation set it is known already."""
    cfg = subject.cfg.clone()
    val, train = cfg.DATASETS.TEST[0], cfg.DATASETS.TRAIN[0]
    images = min(AP_IMAGES, len(DatasetCatalog.get(val)), len(DatasetCatalog.get(train)))
    part = f"{train}@{images}"
    register_derived([part])
    cfg.DATASETS.TEST = (part,)
    known = subject.found["evaluation"]

    @functools.cache
    def measured(kind: str) -> dict[str, dict[str, float]]:
        train = evaluate_under(cfg, subject.model, [kind])[kind][part]
        both = {"train": train, "val": known[kind][val]}
        return {split: {m: r["bbox"][m] for m in ("AP", "AP50")} for split, r in both.items()}

    # A kind that does not differ for this model was not evaluated.
    return lambda kind: measured(kind if kind in known else "population")


def _probe(probe: Callable[..., Any], images: int) -> Callable[[Subject], Any]:
    """A probe of the validation images alone."""
    return lambda subject: probe(
        subject.model, subject.loader(), subject.batches(images), partition=subject.partition
    )


PROBES: dict[str, Callable[[Subject], Any]] = {
    "companion_swap": _probe(probes.companion_swap, IMAGES),
    "cross_roi_jacobian": _probe(probes.cross_roi_jacobian, JACOBIAN_IMAGES),
    "statistics_probe": _probe(probes.statistics_probe, IMAGES),
    "decomposition": _decomposition,
}
