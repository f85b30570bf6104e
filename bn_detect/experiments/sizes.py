"""Experiments (a) and (b): the normalization batch size, and what repairs a small one."""

from itertools import product
from pathlib import Path
from typing import Any

from .job import Job
from .measuring import ONE_BATCH, WHOLE, error, images, in_batches, precise
from .training import settings, trained

SIZES = (2, 4, 8, 16, 32, 64)
STAGES = {"res4": 4, "res5": 1}  # last stage of the network -> positions that it has of an image


def jobs(seed: int, options: tuple[str, ...] = ()) -> list[Job]:
    """The runs of a seed; those with frozen statistics go on from the others."""
    found = []
    for stage, size in product(STAGES, SIZES):
        keys = ("MODEL.ROI_BN.BATCH", "images", "MODEL.ROI_BN.IMAGES_PER_GROUP", str(size))
        keys += ("MODEL.RESNETS.OUT_FEATURES", f"['{stage}']", *options)
        found.append(Job("sizes", f"{stage}_{size}", seed, keys))
        found.append(Job("sizes", f"{stage}_{size}_frozen", seed, keys, f"{stage}_{size}"))
    return found


def run(job: Job, output: Path) -> dict[str, Any]:
    """Errors in percent; for a frozen run under its frozen statistics alone."""
    cfg = settings(job, output)
    trainer = trained(job, cfg, output)
    model, size = trainer.model, cfg.MODEL.ROI_BN.IMAGES_PER_GROUP
    train, val = (
        in_batches(images(cfg, name), WHOLE)
        for name in (cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0])
    )
    if job.begins:
        return {"val_frozen": error(model, val)}
    found = {
        "train_minibatch": error(model, train, images_per_group=size),
        "val_minibatch": error(model, val, images_per_group=size),
        "val_ema": error(model, val),
    }
    with precise(model, train):
        found["val_precise_own"] = error(model, val)
    with precise(model, train, **ONE_BATCH):
        found["val_population"] = error(model, val)
        found["train_population"] = error(model, train)
    return found
