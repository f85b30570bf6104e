"""What one run measures of its checkpoint: python -m bn_detect.study.measure RUN_FOLDER.

Every measurement is in measurements.json as soon as it is there; what is there is not repeated.
"""

import argparse
import dataclasses
import importlib
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import nn

from ..configuration.model import kinds_of
from ..configuration.reading import read_config
from ..data import register_derived
from ..engine.evaluation import evaluate_under, precise_bn
from ..engine.trainer import BNTrainer
from ..runtime.checkpointer import AtomicCheckpointer
from ..runtime.files import write_json
from ..runtime.launch import launch, share_cores
from .metrics import read_metrics, seconds_per_iteration, training_curves, training_summary
from .runs import read_json
from .scalars import write_scalars
from .subject import PROBES, Subject

TIMEOUT = timedelta(minutes=30)


class Measurements:
    """measurements.json: read once, written whole after each entry."""

    def __init__(self, folder: Path) -> None:
        self.run = read_json(folder / "run.json")
        self._path = folder / "measurements.json"
        self.found = read_json(self._path) or self._begin(folder)

    def _begin(self, folder: Path) -> dict[str, Any]:
        iterations = self.run["iterations"]
        records = read_metrics(folder / "metrics.json")
        settings = yaml.safe_load((folder / "settings.yaml").read_text())
        return {
            "arm": self.run["arm"],
            "seed": self.run["seed"],
            "test_stats": settings["MODEL"]["ROI_BN"]["TEST_STATS"],
            "iterations": iterations,
            "train_seconds": iterations * (seconds_per_iteration(records) or 0.0),
            "measure_seconds": 0.0,
            "training": training_summary(records),
            "curves": training_curves(records),
            "evaluation": {},
            "probes": {},
            "measured": [],  # complete, of plan.MEASURES
        }

    def missing(self, name: str) -> bool:
        return name in self.run["measure"] and name not in self.found["measured"]

    def add(self, part: str, key: str, value: Any, seconds: float) -> None:
        self.found[part][key] = value
        self.found["measure_seconds"] += seconds
        self.write()

    def complete(self, name: str) -> None:
        self.found["measured"].append(name)
        self.write()

    def write(self) -> None:
        write_json(self._path, self.found)


def measure(folder: Path) -> None:
    """Measure what is missing: the evaluation in as many processes as trained, the rest in one."""
    measurements = Measurements(folder)
    measurements.write()
    if measurements.missing("evaluation"):
        launch(_evaluate, measurements.run["processes"], timeout=TIMEOUT, args=(folder,))
        measurements = Measurements(folder)
        measurements.complete("evaluation")
    _run_probes(folder, measurements)
    write_scalars(measurements.found, folder)


def _evaluate(folder: Path) -> None:
    """One worker's part: under each kind of statistics that differs for this model."""
    setup_logger(distributed_rank=comm.get_rank(), name="detectron2")
    measurements = Measurements(folder)
    cfg = run_config(folder, measurements.run, comm.get_world_size())
    if cfg.MODEL.DEVICE == "cpu":
        share_cores()
    model = load_model(cfg, measurements.run, folder)
    for kind in kinds_of(model):
        if kind not in measurements.found["evaluation"]:
            begin = time.monotonic()
            results = evaluate_under(cfg, model, [kind])[kind]
            if comm.is_main_process():
                measurements.add("evaluation", kind, results, time.monotonic() - begin)


def run_config(folder: Path, run: dict[str, Any], processes: int) -> CfgNode:
    """The config of a run folder, for so many processes; not frozen.

    The workers that trained are virtual ones where there are fewer processes.
    """
    for module in run["imports"]:
        importlib.import_module(module)
    options = ["OUTPUT_DIR", str(folder)]
    settings = argparse.Namespace(config_file=str(folder / "settings.yaml"), opts=options)
    cfg = BNTrainer.auto_scale_workers(read_config(settings), run["workers"]).clone()
    cfg.defrost()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    cfg.MODEL.ROI_BN.VIRTUAL_WORKERS *= run["workers"] // processes
    if run["workers"] > processes:  # features move between processes only; the groups are the same
        cfg.MODEL.ROI_BN.EXCHANGE = "statistics"
    register_derived([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return cfg


def load_model(cfg: CfgNode, run: dict[str, Any], folder: Path) -> nn.Module:
    """The model with the run's checkpoint, in evaluation mode.

    A checkpoint that the run did not make gets PreciseBN statistics where the config asks for them.
    """
    seed_all_rng(cfg.SEED)
    model = BNTrainer.build_model(cfg)
    weights = run["weights"]
    path = weights if "://" in weights else str(folder.resolve() / weights)
    AtomicCheckpointer(model, whole=True, trust=run.get("trust", False)).load(path)
    if cfg.TEST.PRECISE_BN.ENABLED and not run["trains"]:
        precise_bn(cfg, model)
    return model.eval()


def _run_probes(folder: Path, measurements: Measurements) -> None:
    missing = [name for name in PROBES if measurements.missing(name)]
    if not missing:
        return
    cfg = run_config(folder, measurements.run, 1)
    subject = Subject(cfg, load_model(cfg, measurements.run, folder), measurements.found)
    measurements.found["classes"] = subject.classes
    for name in missing:
        begin = time.monotonic()
        report = PROBES[name](subject)
        print(f"{name}\n{report}\n", flush=True)
        measurements.add("probes", name, dataclasses.asdict(report), time.monotonic() - begin)
        measurements.complete(name)


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
