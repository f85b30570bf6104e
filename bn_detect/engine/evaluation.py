"""One model under several kinds of test statistics."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import CLASSIFICATION
from ..layers import RoIBatchNorm2d
from ..layers.statistics import use_statistics
from ..population.precise_bn import update_population_stats
from ..population.undisturbed import kept_buffers
from .trainer import BNTrainer

EVAL_STATS = ("population", "minibatch", "precise")

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
        ValueError: see `check_eval_stats`.
    """
    check_eval_stats(statistics, model)
    every = {}
    for kind in statistics:
        with contextlib.ExitStack() as stack:
            if kind == "precise":
                stack.enter_context(with_precise_statistics(cfg, model))
            test_stats = "minibatch" if kind == "minibatch" else "population"
            stack.enter_context(use_statistics(model, test_stats))
            every[kind] = _evaluate(_under(cfg, test_stats), model, kind)
    return every


def check_eval_stats(statistics: Sequence[str] | None, model: nn.Module) -> None:
    """Raise ValueError for a kind that is not of EVAL_STATS, or that means nothing for the model.

    Under such a kind the model would be evaluated as under "population"; None is fine.
    """
    for kind in statistics or ():
        if kind not in EVAL_STATS:
            raise ValueError(f"--eval-stats is {kind!r}; it must be of {', '.join(EVAL_STATS)}")
        if kind not in kinds_of(model):
            raise ValueError(
                f"--eval-stats is {kind!r}, but no BatchNorm layer of this model takes part in it; "
                f"it must be of {', '.join(kinds_of(model))}"
            )


def kinds_of(model: nn.Module) -> tuple[str, ...]:
    """The kinds of test statistics that mean something for a model; without BN there is one."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    switches = any(isinstance(layer, RoIBatchNorm2d) for layer in layers)
    means = {"population": True, "minibatch": switches, "precise": bool(layers)}
    return tuple(kind for kind in EVAL_STATS if means[kind])


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


@contextlib.contextmanager
def with_precise_statistics(cfg: CfgNode, model: nn.Module) -> Iterator[None]:
    """The statistics of a PreciseBN pass as `TEST.PRECISE_BN` says, and then the old ones again."""
    with kept_buffers(model):
        precise_bn(cfg, model)
        yield


def precise_bn(cfg: CfgNode, model: nn.Module) -> None:
    """A PreciseBN pass over training images, as `TEST.PRECISE_BN` says; prints its report."""
    settings = cfg.TEST.PRECISE_BN
    report = update_population_stats(
        model,
        BNTrainer.build_population_loader(cfg, max(cfg.SEED, 0)),
        settings.NUM_ITER,
        modules=settings.MODULES or None,
        roi_source=settings.ROI_SOURCE,
    )
    if comm.is_main_process():
        print(report)


def evaluation_table(every: dict[str, Results]) -> str:
    """A row per dataset and kind of statistics; AP and AP50 of each task, or errors, in percent."""
    tasks = list(dict.fromkeys(t for r in every.values() for d in r.values() for t in d))
    columns = [
        (task, metric)
        for task in tasks
        for metric in (("top1_error", "top5_error") if task == CLASSIFICATION else ("AP", "AP50"))
    ]
    rows = [
        [name, kind, *(results[name].get(task, {}).get(metric) for task, metric in columns)]
        for kind, results in every.items()
        for name in results
    ]
    headers = ["dataset", "statistics", *(f"{task} {metric}" for task, metric in columns)]
    return tabulate(sorted(rows, key=lambda row: row[0]), headers=headers, floatfmt=".1f")
