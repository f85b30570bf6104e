"""Training a small classifier within this process, quietly, its images kept in memory."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng

from ..commands.train import parse_arguments
from ..configuration.reading import read_config
from ..data import register_derived
from ..engine import BNTrainer
from .job import Job

CONFIG = Path(__file__).parents[2] / "configs" / "digits" / "Base-digits.yaml"


class QuietTrainer(BNTrainer):
    """`BNTrainer` that writes nothing but checkpoints. Test images are read and mapped once."""

    def build_writers(self) -> list:
        return []

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
        return _MappedOnce(super().build_mapper(cfg, is_train=False))


class _MappedOnce:
    """A mapper without random numbers, whose results are kept."""

    kept: dict[tuple, dict[str, Any]] = {}

    def __init__(self, mapper: Callable[[dict], dict]) -> None:
        self._mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        key = (dataset_dict["file_name"], dataset_dict.get("corruption"))
        if key not in self.kept:
            self.kept[key] = self._mapper(dataset_dict)
        return dict(self.kept[key])


def settings(job: Job, output: Path) -> CfgNode:
    """The config of a run; checkpoints after 4/5 of the iterations and at the end."""
    options = ["SEED", str(job.seed), "OUTPUT_DIR", str(job.folder(output)), *job.options]
    cfg = read_config(parse_arguments(["--config-file", str(CONFIG), *options]))
    cfg.defrost()
    cfg.SOLVER.CHECKPOINT_PERIOD = late(cfg)
    if job.begins:
        cfg.MODEL.ROI_BN.FREEZE_ITER = late(cfg)
    else:
        cfg.TEST.PRECISE_BN.ENABLED = False  # statistics are measured afterwards
    cfg.freeze()
    register_derived([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return cfg


def late(cfg: CfgNode) -> int:
    """The iteration at which the last fifth of training begins."""
    return max(1, cfg.SOLVER.MAX_ITER * 4 // 5)


def trained(job: Job, cfg: CfgNode, output: Path, hooks: Sequence[HookBase] = ()) -> BNTrainer:
    """Train from the beginning, or from the checkpoint of `job.begins`."""
    logging.getLogger("detectron2").setLevel(logging.INFO)  # else the trainer makes it print
    folder = job.folder(output)
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    if job.begins:
        checkpoint = f"model_{late(cfg) - 1:07d}.pth"
        shutil.copy(job.folder(output, job.begins) / checkpoint, folder / checkpoint)
        (folder / "last_checkpoint").write_text(checkpoint)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    cfg.freeze()
    seed_all_rng(job.seed)
    trainer = QuietTrainer(cfg)
    trainer.resume_or_load(resume=bool(job.begins))
    trainer.register_hooks(list(hooks))
    trainer.train()
    return trainer
