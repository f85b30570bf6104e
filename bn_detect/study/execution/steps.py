"""The two steps of a run, each given the run's folder, which says all: training and measuring.

The pool imports this module before it forks, so everything that a run needs is imported here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ...configuration.keys import normalization_batch
from ...configuration.settings import check_weights
from ...data import ClassificationMapper, register_derived
from ...distributed.neighbours import neighbours
from ...engine.trainer import BNTrainer
from ...runtime.files import read_json, write_json, write_text
from ...runtime.launch import launch, share_cores
from ...runtime.user_modules import import_modules
from ..measures.registry import MEASURES
from .measuring import TIMEOUT, measure, settings  # noqa: F401 - `measure` is the other step

KEPT_BYTES = 1 << 28  # of images, by one process


def train(folder: Path) -> None:
    """Train from the beginning, from another run's checkpoint, or from where the run was ended."""
    run = read_json(folder / "run.json")
    if run["start"]:
        _go_on_from(folder / run["start"], folder)
    check_weights(settings(folder), resume=True)
    launch(_train, run["workers"], timeout=TIMEOUT, args=(folder,))


def _train(folder: Path) -> None:
    """One worker's part."""
    run = read_json(folder / "run.json")
    import_modules(run["imports"])
    whole, cfg = settings(folder), settings(folder, *run["train_options"])
    if cfg.MODEL.DEVICE == "cpu":
        share_cores()
    for name in ("detectron2", "bn_detect"):
        setup_logger(str(folder), comm.get_rank(), name=name)
    ranks = normalization_batch(cfg).spans(comm.get_world_size())
    neighbours(ranks, timeout=TIMEOUT)
    register_derived([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    if comm.is_main_process():
        write_text(folder / "config.yaml", cfg.dump())
    seed_all_rng(cfg.SEED + comm.get_rank())
    trainer = StudyTrainer(cfg, folder, _follow(whole, run["measure"]))
    trainer.checkpointer.trust = run["trust"]
    trainer.resume_or_load(resume=True)
    trainer.train()


def _follow(cfg: CfgNode, measures: dict[str, dict[str, Any]]) -> dict[str, HookBase]:
    """Make the hooks of the measures that have one."""
    hooks = {name: MEASURES[name].follow for name in measures}
    return {name: follow(cfg, measures[name]) for name, follow in hooks.items() if follow}


def _go_on_from(checkpoint: Path, folder: Path) -> None:
    """Put another run's checkpoint where a run that was ended has its own, if it has none."""
    if not (folder / "last_checkpoint").exists():
        shutil.copy(checkpoint, folder / checkpoint.name)
        write_text(folder / "last_checkpoint", checkpoint.name)


class StudyTrainer(BNTrainer):
    """`BNTrainer` with the hooks of a run's measures, and small datasets kept in memory.

    Args:
        follow: hooks by measure; what they keep goes into followed.json in `folder`.
    """

    def __init__(self, cfg: CfgNode, folder: Path, follow: dict[str, HookBase]) -> None:
        self._follow = [*follow.values(), *([_Keep(folder, follow)] if follow else [])]
        super().__init__(cfg, checked=True)  # when the study was planned

    def build_hooks(self) -> list:
        # Before the checkpoints: a checkpoint then knows the iteration that was just done.
        return [*self._follow, *super().build_hooks()]

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> Callable[[dict], dict | None]:
        mapper = super().build_mapper(cfg, is_train)
        if isinstance(mapper, ClassificationMapper):
            mapper.read = _ReadOnce(mapper.read)
        return mapper


class _Keep(HookBase):
    """Write what the hooks kept, before the final checkpoint says that training is done."""

    def __init__(self, folder: Path, follow: dict[str, HookBase]) -> None:
        self._folder, self._follow = folder, follow

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter:
            results = {name: hook.result for name, hook in self._follow.items()}
            write_json(self._folder / "followed.json", results)


class _ReadOnce:
    """A reader whose images are kept, up to a limit."""

    def __init__(self, read: Callable[[dict[str, Any]], np.ndarray]) -> None:
        self._read = read
        self._kept: dict[tuple, np.ndarray] = {}
        self._bytes = 0

    def __call__(self, dataset_dict: dict[str, Any]) -> np.ndarray:
        key = (dataset_dict["file_name"], dataset_dict.get("corruption"))
        if key in self._kept:
            return self._kept[key]
        image = self._read(dataset_dict)
        if self._bytes < KEPT_BYTES:
            self._bytes += image.nbytes
            self._kept[key] = image
        return image
