"""Experiment (d): population statistics of another domain."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..data.corrupted import corrupted_name
from ..modeling import BNImageClassifier
from .job import Job
from .measuring import ONE_BATCH, error, images, in_batches, precise
from .training import settings, trained

CORRUPTIONS = ("contrast", "gaussian_noise", "jpeg_compression")
SEVERITIES = (3, 5)
CLEAN = "clean"


def jobs(seed: int, options: tuple[str, ...] = ()) -> list[Job]:
    """One run, on clean images."""
    return [Job("domains", "clean", seed, options)]


def run(job: Job, output: Path) -> dict[str, Any]:
    """{"errors": {severity: {evaluation data: {data of the statistics: percent}}}}.

    Statistics come from the training images of a domain, without labels.
    """
    cfg = settings(job, output)
    model = trained(job, cfg, output).model
    return {"errors": {str(level): _table(cfg, model, level) for level in SEVERITIES}}


def _table(cfg: CfgNode, model: BNImageClassifier, severity: int) -> dict[str, dict[str, float]]:
    train, val = (
        {
            domain: in_batches(images(cfg, _name(names[0], domain, severity)))
            for domain in (CLEAN, *CORRUPTIONS)
        }
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    errors: dict[str, dict[str, float]] = {domain: {} for domain in val}
    for source, batches in train.items():
        with precise(model, batches, **ONE_BATCH):
            for target in val:
                errors[target][source] = error(model, val[target])
    return errors


def _name(dataset: str, domain: str, severity: int) -> str:
    return dataset if domain == CLEAN else corrupted_name(dataset, domain, severity)
