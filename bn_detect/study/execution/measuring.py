"""The second step of a run: take the measures that are missing of its checkpoint.

Every part of a measure is in measurements.json as soon as it is there; what is there is not
repeated. A measure that fails does not keep the others from being taken.
"""

import argparse
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import nn

from ...configuration.reading import read_config
from ...data import register_derived
from ...engine.evaluation import precise_bn
from ...engine.trainer import BNTrainer
from ...population.undisturbed import undisturbed
from ...runtime.checkpointer import AtomicCheckpointer
from ...runtime.errors import RunFailed
from ...runtime.files import read_json, write_json
from ...runtime.launch import launch, share_cores
from ...runtime.signals import Interrupted
from ...runtime.user_modules import import_modules
from ..measures.metrics import read_metrics, seconds_per_iteration
from ..measures.registry import MEASURES
from ..measures.subject import Subject
from .scalars import write_scalars

TIMEOUT = timedelta(minutes=30)


class Measurements:
    """measurements.json: read once, written whole after each part."""

    def __init__(self, folder: Path) -> None:
        self.run = read_json(folder / "run.json")
        self._path = folder / "measurements.json"
        self.content = read_json(self._path) or self._start(folder)
        self.content["failed"] = {}

    def _start(self, folder: Path) -> dict[str, Any]:
        iterations = self.run["iterations"]
        seconds = seconds_per_iteration(read_metrics(folder / "metrics.json"))
        kept = yaml.safe_load((folder / "settings.yaml").read_text())
        return {
            "arm": self.run["arm"],
            "seed": self.run["seed"],
            "test_stats": kept["MODEL"]["ROI_BN"]["TEST_STATS"],
            "iterations": iterations,
            "train_seconds": iterations * (seconds or 0.0),
            "measure_seconds": 0.0,
            "measures": {},
            "started": {},  # options by name
            "measured": {},  # options by name, of what is complete
        }

    def missing(self, name: str) -> bool:
        return self.content["measured"].get(name) != self.run["measure"][name]

    def start(self, name: str) -> dict[str, Any]:
        """Return the parts that are there; those of other options only where a measure grows."""
        options = self.run["measure"][name]
        if not MEASURES[name].keeps(self.content["started"].get(name, {}), options):
            self.content["measures"].pop(name, None)
        self.content["started"][name] = options
        return self.content["measures"].setdefault(name, {})

    def add(self, name: str, part: dict[str, Any], seconds: float) -> None:
        self.content["measures"][name] |= part
        self.content["measure_seconds"] += seconds
        self.write()

    def complete(self, name: str) -> None:
        self.content["measured"][name] = self.run["measure"][name]
        self.write()

    def write(self) -> None:
        if comm.is_main_process():
            write_json(self._path, self.content)


def measure(folder: Path) -> None:
    """Take what is missing: some measures in as many processes as trained, the rest in one.

    Raises:
        RunFailed: measures failed; the others are kept.
    """
    measurements = Measurements(folder)
    measurements.write()
    import_modules(measurements.run["imports"])  # they may register the measures
    missing = [name for name in measurements.run["measure"] if measurements.missing(name)]
    missing.sort(key=lambda name: not MEASURES[name].first)
    processes = measurements.run["processes"]
    shared = [name for name in missing if processes > 1 and MEASURES[name].every_worker]
    alone = [name for name in missing if name not in shared]
    failed = _share(folder, shared, processes)
    failed |= _take(folder, alone) if alone else {}
    measurements = Measurements(folder)
    measurements.content["failed"] = failed
    measurements.write()
    write_scalars(measurements.content, folder)
    if failed:
        causes = "; ".join(f"{name}: {cause}" for name, cause in failed.items())
        raise RunFailed(f"{len(failed)} of {len(missing)} measures failed: {causes}")


def _share(folder: Path, names: list[str], processes: int) -> dict[str, str]:
    """Take these measures in several processes; return the causes of those that failed.

    A measure that fails ends its processes, and others take the measures after it.
    """
    failed: dict[str, str] = {}
    while names:
        try:
            launch(_take, processes, timeout=TIMEOUT, args=(folder, names))
            break
        except Interrupted:
            raise
        except SystemExit:  # a worker has said which file
            cause = "a worker could not read or write a file, which the log names"
        except RunFailed as error:
            print(error.traceback, file=sys.stderr)
            cause = " ".join(str(error).split())
        after = Measurements(folder)
        names = [name for name in names if after.missing(name)]
        failed |= dict.fromkeys(names[:1], cause)
        names = names[1:]
    return failed


def _take(folder: Path, names: list[str]) -> dict[str, str]:
    """Take these measures, as one of the workers; return the causes of those that failed."""
    setup_logger(distributed_rank=comm.get_rank(), name="detectron2")
    measurements = Measurements(folder)
    cfg = run_config(folder, measurements.run, comm.get_world_size())
    if cfg.MODEL.DEVICE == "cpu":
        share_cores()
    model = load_model(cfg, measurements.run, folder)
    followed = read_json(folder / "followed.json")
    subject = Subject(cfg, model, folder, measurements.content["measures"], followed)
    for name in names:
        try:
            _take_one(name, subject, measurements)
        except Exception as error:
            if comm.get_world_size() > 1:  # the others may wait for this one
                raise
            traceback.print_exc()
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            measurements.content["failed"][name] = cause
            measurements.write()
    return measurements.content["failed"]


def _take_one(name: str, subject: Subject, measurements: Measurements) -> None:
    """Take a measure; it leaves the model and the random numbers as they were for the next one."""
    options = measurements.run["measure"][name]
    kept = measurements.start(name)
    since = time.monotonic()
    with undisturbed(subject.model):
        for part in MEASURES[name].take(subject, options, dict(kept)):
            measurements.add(name, part, time.monotonic() - since)
            since = time.monotonic()
    measurements.complete(name)


def settings(folder: Path, *options: str) -> CfgNode:
    """Return the config of a run folder, with these keys and values on top."""
    words = ["OUTPUT_DIR", str(folder), *options]
    file = str(folder / "settings.yaml")
    return read_config(argparse.Namespace(config_file=file, opts=words, made_here=True))


def run_config(folder: Path, run: dict[str, Any], processes: int) -> CfgNode:
    """Return the config of a run folder, for so many measuring processes; not frozen.

    The workers that trained are virtual ones where there are fewer processes.
    """
    import_modules(run["imports"])
    cfg = BNTrainer.auto_scale_workers(settings(folder), run["workers"]).clone()
    cfg.defrost()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    cfg.MODEL.ROI_BN.VIRTUAL_WORKERS *= run["workers"] // processes
    if run["workers"] > processes:  # features move between processes only; the groups are the same
        cfg.MODEL.ROI_BN.EXCHANGE = "statistics"
    register_derived([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return cfg


def load_model(cfg: CfgNode, run: dict[str, Any], folder: Path) -> nn.Module:
    """Return the model with the run's checkpoint, in evaluation mode.

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
