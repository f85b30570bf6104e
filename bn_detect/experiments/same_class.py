"""Experiment (e): mini-batches of one class leak labels through BatchNorm."""

from itertools import islice
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ..engine.same_class_sampler import SameClassSampler
from .job import Job
from .measuring import ONE_BATCH, Batch, error, images, in_batches, precise
from .training import late, settings, trained

WORKERS = 8  # of 8 images each
ARMS = {  # arm -> whose statistics normalize, classes in a worker's batch (0: any)
    "mixed": ("worker", 0),
    "same_class": ("worker", 1),
    "shuffled": ("shuffled", 1),
    "global": ("global", 1),
}


def jobs(seed: int, options: tuple[str, ...] = ()) -> list[Job]:
    """A run for each arm."""
    return [
        Job(
            "same_class",
            arm,
            seed,
            (
                *("MODEL.ROI_BN.BATCH", batch, "MODEL.ROI_BN.VIRTUAL_WORKERS", str(WORKERS)),
                *("DATALOADER.CLASSES_PER_WORKER_BATCH", str(classes)),
                *options,
            ),
        )
        for arm, (batch, classes) in ARMS.items()
    ]


def run(job: Job, output: Path) -> dict[str, Any]:
    """Errors in percent: in training, under population statistics, under those of mini-batches."""
    cfg = settings(job, output)
    kept = KeepTrainingError(late(cfg))
    model = trained(job, cfg, output, [kept]).model
    train, val = (images(cfg, n[0]) for n in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
    size = cfg.SOLVER.IMS_PER_BATCH // WORKERS
    found = {
        "training": kept.mean,
        "val_same_class": error(model, same_class_batches(val, cfg, size), images_per_group=size),
        "val_mixed": error(model, in_batches(val), images_per_group=size),
    }
    with precise(model, in_batches(train), **ONE_BATCH):
        found["val_population"] = error(model, in_batches(val))
    return found


def same_class_batches(of: Batch, cfg: CfgNode, size: int) -> list[Batch]:
    """As many images as there are, batched as in training: `size` of a class in a row."""
    labels = [d["label"] for d in of]
    sampler = SameClassSampler(labels, 1, size, virtual_workers=WORKERS)
    chosen = islice(sampler, len(of) // size * size)
    return in_batches([of[i] for i in chosen], cfg.SOLVER.IMS_PER_BATCH)


class KeepTrainingError(HookBase):
    """The mean error of the training batches, as trained on, from an iteration on; percent."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._errors: list[float] = []

    def after_step(self) -> None:
        if self.trainer.iter >= self._start:
            self._errors.append(self.trainer.storage.latest()["classifier/error"][0])

    @property
    def mean(self) -> float:
        return sum(self._errors) / len(self._errors)
