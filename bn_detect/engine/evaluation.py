"""Evaluate one model under several kinds of test statistics."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..configuration.model import check_statistics
from ..data import CLASSIFICATION
from ..layers.statistics import use_statistics
from ..population.precise_bn import update_population_stats
from ..population.undisturbed import kept_buffers
from .trainer import BNTrainer

Results = dict[str, dict[str, dict[str, float]]]  # dataset -> task ("bbox", ...) -> metric


def evaluate_under(cfg: CfgNode, model: nn.Module, statistics: Sequence[str]) -> dict[str, Results]:
    """Evaluate on every dataset of `DATASETS.TEST` under each kind of statistics. A collective.

    Args:
        statistics: of "population" (the running statistics that the model holds), "minibatch" (the
            RoIs of `TEST_IMAGES_PER_GROUP` test images) and "precise" (a PreciseBN pass as
            `TEST.PRECISE_BN` says).

    Returns:
        Results by kind; on ranks other than 0 without metrics. The model is as before.

    Raises:
        ValueError: see `check_statistics`.
    """
    check_statistics(statistics, model)
    all_results = {}
    for kind in statistics:
        with contextlib.ExitStack() as stack:
            if kind == "precise":
                stack.enter_context(kept_buffers(model))
                precise_bn(cfg, model)
            test_stats = "minibatch" if kind == "minibatch" else "population"
            stack.enter_context(use_statistics(model, test_stats))
            all_results[kind] = _evaluate(_under(cfg, test_stats), model, kind)
    return all_results


def _under(cfg: CfgNode, test_stats: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_BN.TEST_STATS = test_stats  # which the test loader follows
    return cfg


def _evaluate(cfg: CfgNode, model: nn.Module, kind: str) -> Results:
    folder = Path(cfg.OUTPUT_DIR, f"inference_{kind}")
    names = cfg.DATASETS.TEST
    evaluators = [BNTrainer.build_evaluator(cfg, name, str(folder / name)) for name in names]
    results = BNTrainer.test(cfg, model, evaluators)
    return {names[0]: results} if len(names) == 1 else results


def precise_bn(cfg: CfgNode, model: nn.Module) -> None:
    """Make a PreciseBN pass over training images, as `TEST.PRECISE_BN` says; print its report."""
    settings = cfg.TEST.PRECISE_BN
    report = update_population_stats(
        model,
        BNTrainer.build_population_loader(cfg, max(cfg.SEED, 0)),
        settings.NUM_ITER,
        modules=settings.MODULES or None,
        roi_source=settings.ROI_SOURCE,
        images_per_group=settings.IMAGES_PER_GROUP,
    )
    if comm.is_main_process():
        print(report)


def evaluation_table(all_results: dict[str, Results]) -> str:
    """Tabulate AP and AP50 of each task, or errors, in percent, by dataset and statistics."""
    by_dataset = [results for kind in all_results.values() for results in kind.values()]
    tasks = list(dict.fromkeys(task for results in by_dataset for task in results))
    columns = [
        (task, metric)
        for task in tasks
        for metric in (("top1_error", "top5_error") if task == CLASSIFICATION else ("AP", "AP50"))
    ]
    rows = [
        [name, kind, *(results[name].get(task, {}).get(metric) for task, metric in columns)]
        for kind, results in all_results.items()
        for name in results
    ]
    headers = ["dataset", "statistics", *(f"{task} {metric}" for task, metric in columns)]
    return tabulate(sorted(rows, key=lambda row: str(row[0])), headers=headers, floatfmt=".1f")
