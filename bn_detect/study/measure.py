"""What one run measures of its checkpoint: python -m bn_detect.study.measure RUN_FOLDER.

Every measurement is in measurements.json as soon as it is there; what is there is not repeated.
"""

import argparse
import dataclasses
import functools
import importlib
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import probes
from ..data.subset import register_subsets
from ..engine.checkpointer import AtomicCheckpointer
from ..engine.evaluation import EVAL_STATS, evaluate_under, precise_bn
from ..engine.launch import launch, share_cores
from ..engine.train import read_config
from ..engine.trainer import BNTrainer
from ..files import write_json
from ..layers import NormalizationBatch, RoIBatchNorm2d
from .metrics import read_metrics, seconds_per_iteration, training_curves, training_summary
from .runs import read_json
from .scalars import write_scalars

TIMEOUT = timedelta(minutes=30)
PROBE_IMAGES = 480  # of each probe, where the dataset has as many
JACOBIAN_IMAGES = 160  # its gradients take long
AP_IMAGES = 500  # of the training set


class Measurements:
    """measurements.json: read once, written whole after each entry."""

    def __init__(self, folder: Path) -> None:
        self.run = read_json(folder / "run.json")
        self._path = folder / "measurements.json"
        self.found = read_json(self._path) or self._begin(folder)

    def _begin(self, folder: Path) -> dict[str, Any]:
        iterations = self.run["iterations"]
        records = read_metrics(folder / "metrics.json")
        return {
            "arm": self.run["arm"],
            "seed": self.run["seed"],
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
    register_subsets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return cfg


def load_model(cfg: CfgNode, run: dict[str, Any], folder: Path) -> nn.Module:
    """The model with the run's checkpoint, in evaluation mode.

    A checkpoint that the run did not make gets PreciseBN statistics where the config asks for them.
    """
    seed_all_rng(cfg.SEED)
    model = BNTrainer.build_model(cfg)
    weights = run["weights"]
    path = weights if "://" in weights else str(folder.resolve() / weights)
    _WholeCheckpointer(model).load(path)
    if cfg.TEST.PRECISE_BN.ENABLED and not run["trains"]:
        precise_bn(cfg, model)
    return model.eval()


class _WholeCheckpointer(AtomicCheckpointer):
    """Raises where Detectron2 warns: a part at its initial values makes it another model."""

    def _load_model(self, checkpoint: Any) -> Any:
        found = super()._load_model(checkpoint)
        missing = [k for k in found.missing_keys if not k.endswith("num_batches_tracked")]
        missing += [key for key, *_ in found.incorrect_shapes]
        if missing:
            raise ValueError(
                "the checkpoint does not fit the config; it lacks, or has in another shape, "
                f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
            )
        return found


def kinds_of(model: nn.Module) -> tuple[str, ...]:
    """The kinds of test statistics that mean something for a model; without BN there is one."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    switches = any(isinstance(layer, RoIBatchNorm2d) for layer in layers)
    means = {"population": True, "minibatch": switches, "precise": bool(layers)}
    return tuple(kind for kind in EVAL_STATS if means[kind])


def _run_probes(folder: Path, measurements: Measurements) -> None:
    missing = [name for name in PROBES if measurements.missing(name)]
    if not missing:
        return
    cfg = run_config(folder, measurements.run, 1)
    subject = Subject(cfg, load_model(cfg, measurements.run, folder), measurements.found)
    for name in missing:
        begin = time.monotonic()
        report = PROBES[name](subject)
        print(f"{name}\n{report}\n", flush=True)
        measurements.add("probes", name, dataclasses.asdict(report), time.monotonic() - begin)
        measurements.complete(name)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is probed: `found` is what measurements.json holds."""

    cfg: CfgNode
    model: nn.Module
    found: dict[str, Any]

    def loader(self, split: str = "TEST"):
        name = self.cfg.DATASETS[split][0]
        return probes.probe_loader(self.cfg, name, self.cfg.SOLVER.IMS_PER_BATCH)

    @property
    def partition(self) -> NormalizationBatch | None:
        """None: the head knows. Of plain BatchNorm: the worker that it was trained in."""
        layers = list(self.model.roi_heads.modules())
        if any(isinstance(layer, RoIBatchNorm2d) for layer in layers):
            return None
        if any(isinstance(layer, nn.SyncBatchNorm) for layer in layers):
            return NormalizationBatch(batch="global")
        return NormalizationBatch(virtual_workers=self.cfg.MODEL.ROI_BN.VIRTUAL_WORKERS)

    def batches(self, images: int = PROBE_IMAGES, splits: tuple[str, ...] = ("TEST",)) -> int:
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
    register_subsets([part])
    cfg.DATASETS.TEST = (part,)
    known = subject.found["evaluation"]

    @functools.cache
    def measured(kind: str) -> dict[str, dict[str, float]]:
        train = evaluate_under(cfg, subject.model, [kind])[kind][part]
        both = {"train": train, "val": known[kind][val]}
        return {split: {m: r["bbox"][m] for m in ("AP", "AP50")} for split, r in both.items()}

    # A kind that does not differ for this model was not evaluated.
    return lambda kind: measured(kind if kind in known else "population")


PROBES: dict[str, Callable[[Subject], Any]] = {
    "companion_swap": lambda s: probes.companion_swap(
        s.model, s.loader(), s.batches(), partition=s.partition
    ),
    "cross_roi_jacobian": lambda s: probes.cross_roi_jacobian(
        s.model, s.loader(), s.batches(JACOBIAN_IMAGES), partition=s.partition
    ),
    "statistics_probe": lambda s: probes.statistics_probe(
        s.model, s.loader(), s.batches(), partition=s.partition
    ),
    "decomposition": _decomposition,
}


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
