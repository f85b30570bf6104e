"""The runs of a study: an arm with a seed, in a folder of its own."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..engine.trainer import BNTrainer
from ..runtime.files import read_json, write_json
from .measures.metrics import latest
from .measures.registry import MEASURES
from .plan import Arm, Options, Study
from .settings import arm_config

CHECKPOINT = "model_final.pth"


@dataclass(frozen=True, eq=False)
class Run:
    """A run: what it is, and where.

    Attributes:
        arm, seed: which run of the study.
        folder: holds settings.yaml, run.json, versions.json, logs, checkpoint, metrics.json,
            measurements.json and status.json.
        settings: the resolved config as YAML, less the output folder.
        weights: the checkpoint to measure, a path or URL; the run's own where it `trains`.
        trains: whether the run makes it.
        start: the checkpoint of another run from which training goes on; "" where it begins.
        workers: processes (GPUs) that train it, or did.
        processes: how many the run itself needs at most.
        measure: options by name of what is measured. imports: modules to import first.
        iterations: of training; 0 where it does not train.
        train_options: config keys and values for the training only.
        on_gpu: whether it needs one.
        datasets: that it reads.
        trust: load checkpoints that may execute code too.
        fingerprint: of a given checkpoint file; "" where there is none.
    """

    arm: str
    seed: int
    folder: Path
    settings: str
    weights: str
    trains: bool
    start: str
    workers: int
    processes: int
    measure: dict[str, Options]
    imports: tuple[str, ...]
    iterations: int
    train_options: tuple[str, ...]
    on_gpu: bool
    datasets: tuple[str, ...]
    trust: bool = False
    fingerprint: str = ""

    @property
    def label(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def trained(self) -> bool:
        """Return whether the checkpoint is there; a URL is taken for granted."""
        return "://" in self.weights or Path(self.weights).is_file()

    @property
    def measured(self) -> bool:
        """Return whether nothing is missing."""
        return not self.missing()

    def missing(self) -> list[str]:
        """Names of what is still to be measured."""
        measured = self.measurements().get("measured", {})
        return [name for name, options in self.measure.items() if measured.get(name) != options]

    def measurements(self) -> dict[str, Any]:
        """Return what measurements.json holds so far."""
        return read_json(self.folder / "measurements.json")

    def status(self) -> dict[str, Any]:
        """status.json: `state`, and of a failed run `error` and `log`; {} before it starts."""
        return read_json(self.folder / "status.json")

    def set_status(self, state: str, **more: Any) -> None:
        write_json(self.folder / "status.json", {"state": state, **more})

    def iterations_done(self) -> int:
        return latest(self.folder / "metrics.json").get("iteration", -1) + 1

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for results to be kept; paths in the study are relative."""
        folder = self.folder.resolve()

        def relative(path: str) -> str:
            within = path and Path(path).is_relative_to(folder.parents[1])
            return os.path.relpath(path, folder) if within else path

        same = {"arm": self.arm, "seed": self.seed, "trains": self.trains}
        same |= {"weights": relative(self.weights), "start": relative(self.start)}
        same |= {"workers": self.workers, "iterations": self.iterations}
        return same | ({"fingerprint": self.fingerprint} if self.fingerprint else {})


def plan_runs(
    study: Study,
    output: Path,
    *,
    weights: str | None = None,
    trust: bool = False,
    here: bool = True,
    processes: int | None = None,
) -> list[list[Run]]:
    """List the runs, in groups that one job does one after the other: a training and what uses it.

    Groups are in the order of their seeds, so that each arm has a result early.

    Args:
        output: the study's folder.
        weights: the checkpoint of a study that trains nothing.
        trust: load checkpoints that may execute code too.
        here: see `arm_config`.
        processes: of a run of a study that trains nothing; default: one.

    Raises:
        ValueError: see `arm_config`; or a config without a dataset.
    """
    configs = {
        arm.name: arm_config(study, arm, here=here, weights=weights, trust=trust)
        for arm in study.arms
    }
    given = "" if study.train or weights is None else weights
    if given and "://" not in given:
        given = str(Path(given).resolve())
    fingerprint = _fingerprint(given)

    def folder(arm: Arm, seed: int) -> Path:
        return output / "runs" / arm.slug / f"seed_{seed}"

    def run(arm: Arm, seed: int) -> Run:
        cfg = configs[arm.name].clone()
        cfg.defrost()
        cfg.SEED, cfg.OUTPUT_DIR = seed, "."
        trains = study.train and arm.inference_of is None
        measure = study.measures_of(arm)
        scaled = BNTrainer.auto_scale_workers(cfg, study.workers) if trains else None
        made_by = study.arm(arm.inference_of) if arm.inference_of else arm
        own = folder(made_by, seed).resolve() / CHECKPOINT
        start = ""
        if arm.starts_from:
            parent = folder(study.arm(arm.starts_from.arm), seed).resolve()
            start = str(parent / f"model_{arm.starts_from.iteration - 1:07d}.pth")
        return Run(
            arm=arm.name,
            seed=seed,
            folder=folder(arm, seed),
            settings=cfg.dump(),
            weights=str(own) if study.train else given,
            trains=trains,
            start=start,
            workers=study.workers,
            processes=study.workers if study.train else processes or 1,
            measure=measure,
            imports=study.imports,
            iterations=scaled.SOLVER.MAX_ITER if scaled else 0,
            # What is measured afterwards need not be evaluated at the end of training as well.
            train_options=("DATASETS.TEST", "()") if cfg.TEST.EVAL_PERIOD == 0 else (),
            on_gpu=cfg.MODEL.DEVICE != "cpu",
            datasets=_datasets(study, arm.name, cfg, trains, measure),
            trust=trust,
            fingerprint=fingerprint,
        )

    return [
        [run(each, seed) for each in (arm, *(a for a in study.arms if a.parent == arm.name))]
        for seed in range(1, study.seeds + 1)
        for arm in study.arms
        if arm.parent is None
    ]


def _datasets(
    study: Study, arm: str, cfg: CfgNode, trains: bool, measure: dict[str, Options]
) -> tuple[str, ...]:
    """Return the datasets that a run reads; most measures need validation images only.

    Raises:
        ValueError: something must be read, but the config names nothing.
    """
    reads = {split for name in measure for split in MEASURES[name].reads} | {"TEST"}
    reads |= {"TRAIN"} if trains or cfg.TEST.PRECISE_BN.ENABLED else set()
    for split in sorted(reads):
        if not cfg.DATASETS[split]:
            raise ValueError(
                f"{study.file}: arm {arm!r}: DATASETS.{split} is empty; its images are needed"
            )
    return tuple(
        name for split in ("TRAIN", "TEST") if split in reads for name in cfg.DATASETS[split]
    )


def _fingerprint(weights: str) -> str:
    """Hash of a given checkpoint file, whose path alone does not say what is in it."""
    if not weights or not Path(weights).is_file():
        return ""
    digest = hashlib.sha256()
    with open(weights, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
