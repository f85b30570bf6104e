"""The config of each arm, resolved and checked before anything runs."""

import argparse
from collections.abc import Mapping

from detectron2.config import CfgNode

from ..configuration.check import check_run
from ..configuration.model import check_classes, check_model, kinds_of
from ..configuration.reading import read_config
from ..configuration.trial import build_trial
from ..data import DatasetSummary
from ..engine.trainer import BNTrainer
from ..runtime.checkpointer import AtomicCheckpointer
from .measures.registry import MEASURES
from .plan import Arm, Study


def arm_config(
    study: Study, arm: Arm, *, here: bool, weights: str | None = None, trust: bool = False
) -> CfgNode:
    """Return the frozen config of an arm.

    Args:
        here: it will run on this machine; else its device is not looked for.
        weights: the given checkpoint, which must fit; URLs are not read.
        trust: read it even where it may execute code.

    Raises:
        ValueError: a key or value that cannot work, or a measure that this model does not have;
            names the study's file, the arm, key and value.
    """
    try:
        cfg = _read(study, study.options_of(arm))
        checked = cfg.clone()
        checked.defrost()
        if not here:
            checked.MODEL.DEVICE = "cpu"
        trains, precise = study.train and arm.inference_of is None, cfg.TEST.PRECISE_BN.ENABLED
        model = check_run(checked, study.workers, BNTrainer, (), trains=trains, precise=precise)
        measures = study.measures_of(arm)
        if "evaluation" in measures and "precise" in kinds_of(model):
            check_model(checked, model, trains=False, precise=True)
        for name, options in measures.items():
            _check_measure(name, options, checked, model, study.workers)
        if weights and "://" not in weights:
            AtomicCheckpointer(model, whole=True, trust=trust).load(weights)
    except ValueError as error:
        raise ValueError(f"{study.file}: arm {arm.name!r}: {error}") from error
    return cfg


def check_arm_classes(study: Study, arm: Arm, summaries: Mapping[str, DatasetSummary]) -> None:
    """Raise ValueError where a dataset has more classes than the model of an arm.

    Args:
        summaries: of the datasets that the arm reads, by name.
    """
    try:
        cfg = _read(study, study.options_of(arm))
        check_classes(cfg, build_trial(cfg, BNTrainer), summaries)
    except ValueError as error:
        raise ValueError(f"{study.file}: arm {arm.name!r}: {error}") from error


def check_arm_images(
    study: Study, arm: Arm, summaries: Mapping[str, DatasetSummary], workers: int
) -> None:
    """Raise ValueError where the datasets of an arm do not suffice for one of its measures.

    Args:
        summaries: of the datasets that the arm reads, by name.
        workers: that measure.
    """
    cfg = _read(study, study.options_of(arm))
    for name, options in study.measures_of(arm).items():
        check = MEASURES[name].check_images
        try:
            if check is not None:
                check(cfg, options, summaries, workers)
        except ValueError as error:
            raise ValueError(f"{study.file}: arm {arm.name!r}: measure: {name}: {error}") from error


def _check_measure(name: str, options: dict, cfg: CfgNode, model, workers: int) -> None:
    measure = MEASURES[name]
    try:
        if measure.check is not None:
            measure.check(cfg, model, options)
        if measure.follow is not None and workers > 1:
            raise ValueError(f"it follows the training of one process, and there are {workers}")
    except ValueError as error:
        raise ValueError(f"measure: {name}: {error}") from error


def _read(study: Study, options: dict) -> CfgNode:
    """Read base and options; where that fails, find the option that is to blame."""

    def read(items: list[tuple]) -> CfgNode:
        words = [word for item in items for word in item]
        return read_config(argparse.Namespace(config_file=study.base, opts=words))

    items = list(options.items())
    try:
        return read(items)
    except ValueError:
        for number, (key, value) in enumerate(items):
            try:
                read(items[: number + 1])
            except ValueError as error:
                read(items[:number])  # if that fails already, no option is to blame
                raise ValueError(f"options: {key}: {value!r}: {error}") from error
        raise
