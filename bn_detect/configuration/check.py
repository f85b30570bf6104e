"""The check of a run before any worker starts: settings, model, datasets.

Commands call `check_run` once. A trainer that is made in Python checks the same settings, and its
own model instead of a trial (see `BNTrainer`); what a command has checked is not checked again.
"""

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from ..data import check_datasets, register_derived
from .lazy_config import check_trains
from .model import check_classes, check_model, check_statistics
from .settings import check_settings
from .trial import Builder, build_trial


def check_run(
    cfg: CfgNode,
    world_size: int,
    builder: type[Builder],
    datasets: Sequence[str],
    *,
    trains: bool = True,
    precise: bool = False,
    statistics: Sequence[str] = (),
) -> nn.Module:
    """Raise ValueError, naming key and value, for the first thing that cannot work.

    Args:
        world_size: workers over all machines.
        builder: the trainer class, which builds the model and whatever else a run needs.
        datasets: registered datasets, and derived ones, that the run reads.
        trains: whether the run trains.
        precise: whether there will be a PreciseBN pass, which reads training images, too.
        statistics: the kinds of test statistics to evaluate under (`--eval-stats`).

    Returns:
        The model, built on the CPU, for further checks.
    """
    scaled = builder.auto_scale_workers(cfg, world_size)
    precise = precise or "precise" in statistics
    check_settings(scaled, world_size, trains=trains or precise)
    if trains:
        check_trains(cfg)
    model = build_trial(cfg, builder)
    check_statistics(statistics, model)
    check_model(cfg, model, trains=trains, precise=precise)
    register_derived(datasets)
    check_classes(cfg, model, check_datasets(datasets, cfg))
    return model
