"""The runs of a study: an arm with a seed, in a folder of its own."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..engine.trainer import BNTrainer
from ..runtime.files import write_atomically, write_json
from .metrics import latest
from .plan import Study
from .settings import arm_config

CHECKPOINT = "model_final.pth"


@dataclass(frozen=True)
class Run:
    """What a run is, and where.

    Attributes:
        arm, seed: which run of the study.
        folder: holds settings.yaml, run.json, versions.json, logs, checkpoint, metrics.json,
            measurements.json and status.json.
        settings: the resolved config as YAML, less the output folder.
        weights: the checkpoint to measure, a path or URL; the run's own where it `trains`.
        trains: whether the run makes it.
        workers: processes (GPUs) that train it, or did.
        processes: that the run itself needs at most.
        measure: of `plan.MEASURES`. imports: modules to import first.
        iterations: of training; 0 where it does not train.
        train_options: config keys and values for the training only.
        on_gpu: whether it needs one.
        datasets: that it reads.
        trust: load checkpoints that may execute code too.
    """

    arm: str
    seed: int
    folder: Path
    settings: str
    weights: str
    trains: bool
    workers: int
    processes: int
    measure: tuple[str, ...]
    imports: tuple[str, ...]
    iterations: int
    train_options: tuple[str, ...]
    on_gpu: bool
    datasets: tuple[str, ...]
    trust: bool = False

    @property
    def label(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def trained(self) -> bool:
        """Whether the checkpoint is there; of a URL it is taken for granted."""
        return "://" in self.weights or Path(self.weights).is_file()

    @property
    def measured(self) -> bool:
        return set(self.measure) <= set(self.measurements().get("measured", ()))

    def measurements(self) -> dict[str, Any]:
        """What measurements.json holds so far."""
        return read_json(self.folder / "measurements.json")

    def status(self) -> dict[str, Any]:
        """status.json: `state`, and of a failed run `error` and `log`; {} before it starts."""
        return read_json(self.folder / "status.json")

    def set_status(self, state: str, **more: Any) -> None:
        write_json(self.folder / "status.json", {"state": state, **more})

    def iterations_done(self) -> int:
        return latest(self.folder / "metrics.json").get("iteration", -1) + 1

    def identity(self) -> dict[str, Any]:
        """What must be the same for its results to be kept. Paths within the study are relative."""
        weights, folder = self.weights, self.folder.resolve()
        if Path(weights).is_relative_to(folder.parents[1]):
            weights = os.path.relpath(weights, folder)
        same = {"arm": self.arm, "seed": self.seed, "trains": self.trains, "weights": weights}
        return {**same, "workers": self.workers, "iterations": self.iterations}


def plan_runs(
    study: Study,
    output: Path,
    *,
    workers: int,
    weights: str | None = None,
    trust: bool = False,
    here: bool = True,
) -> list[list[Run]]:
    """The runs, in groups that one job does one after the other: a training and what reuses it.

    Groups are in the order of their seeds, so that each arm has a result early.

    Args:
        output: the study's folder.
        workers: processes (GPUs) of a run; of a study that trains nothing, those that trained.
        weights: the checkpoint of a study that trains nothing.
        trust: load checkpoints that may execute code too.
        here: see `arm_config`.

    Raises:
        ValueError: see `arm_config`; or a config without a dataset.
    """
    configs = {arm.name: arm_config(study, arm, workers=workers, here=here) for arm in study.arms}

    def run(arm_name: str, seed: int) -> Run:
        arm, cfg = study.arm(arm_name), configs[arm_name].clone()
        cfg.defrost()
        cfg.SEED, cfg.OUTPUT_DIR = seed, "."
        trains = study.train and arm.inference_of is None
        folder = _folder(output, arm.slug, seed)
        made_by = study.arm(arm.inference_of) if arm.inference_of else arm
        own = _folder(output, made_by.slug, seed).resolve() / CHECKPOINT
        scaled = BNTrainer.auto_scale_workers(cfg, workers)
        # What is measured afterwards need not be evaluated at the end of training as well.
        again = "evaluation" in study.measure and cfg.TEST.EVAL_PERIOD == 0
        return Run(
            arm=arm.name,
            seed=seed,
            folder=folder,
            settings=cfg.dump(),
            weights=str(own) if study.train else _absolute(weights),
            trains=trains,
            workers=workers,
            processes=workers if study.train else 1,
            measure=study.measure,
            imports=study.imports,
            iterations=scaled.SOLVER.MAX_ITER if trains else 0,
            train_options=("DATASETS.TEST", "()") if again else (),
            on_gpu=cfg.MODEL.DEVICE != "cpu",
            datasets=_datasets(study, arm.name, cfg, trains),
            trust=trust,
        )

    return [
        [run(name, seed) for name in (arm.name, *_users(study, arm.name))]
        for seed in range(1, study.seeds + 1)
        for arm in study.arms
        if arm.inference_of is None
    ]


def _users(study: Study, name: str) -> list[str]:
    return [arm.name for arm in study.arms if arm.inference_of == name]


def _datasets(study: Study, arm: str, cfg: CfgNode, trains: bool) -> tuple[str, ...]:
    """What a run reads; for most probes the images of validation are enough.

    Raises:
        ValueError: something must be read, but the config names nothing.
    """
    training = trains or cfg.TEST.PRECISE_BN.ENABLED
    training |= not {"evaluation", "decomposition"}.isdisjoint(study.measure)
    for key, names in (("TEST", cfg.DATASETS.TEST), ("TRAIN", cfg.DATASETS.TRAIN)):
        if not names and (training or key == "TEST"):
            raise ValueError(
                f"{study.file}: arm {arm!r}: DATASETS.{key} is empty; its images are needed"
            )
    return (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST)


def _folder(output: Path, slug: str, seed: int) -> Path:
    return output / "runs" / slug / f"seed_{seed}"


def _absolute(weights: str) -> str:
    return weights if "://" in weights else str(Path(weights).resolve())


def check_folders(runs: Sequence[Run]) -> None:
    """Raise ValueError where a folder holds a run with other settings."""
    for run in runs:
        found = read_json(run.folder / "run.json")
        if not found:
            continue
        kept = yaml.safe_load((run.folder / "settings.yaml").read_text())
        old = _flat({key: found.get(key) for key in run.identity()}) | _flat(kept)
        new = _flat(run.identity()) | _flat(yaml.safe_load(run.settings))
        differ = [
            f"{key} {old.get(key)!r}, not {new.get(key)!r}"
            for key in sorted(old | new)
            if old.get(key) != new.get(key)
        ]
        if differ:
            raise ValueError(
                f"{run.folder} holds a run with other settings ({'; '.join(differ[:3])}); use "
                "another --output, or --force to run it anew"
            )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted key."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _flat(value, f"{prefix}{key}.").items()
    }


def prepare_folders(runs: Sequence[Run]) -> None:
    """Make the folders that are not there yet, so that each says by itself what is to be done."""
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        text = run.settings.encode()
        write_atomically(run.folder / "settings.yaml", lambda file, text=text: file.write(text))
        more = {"processes": run.processes, "measure": run.measure, "imports": run.imports}
        more["trust"] = run.trust
        write_json(run.folder / "run.json", run.identity() | more)
        if run.status().get("state") == "failed":  # it gets another try
            run.set_status("waiting")


def forget(runs: Sequence[Run]) -> None:
    """Delete what the runs have done."""
    for run in runs:
        shutil.rmtree(run.folder, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """The file's object; {} where there is no file.

    Raises:
        ValueError: it is there, but no JSON object; names the file.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; --force begins the run anew") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; --force begins the run anew")
    return found
