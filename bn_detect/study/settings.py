"""The config of each arm, resolved and checked before anything runs."""

import argparse

from detectron2.config import CfgNode

from ..configuration.check import check_run
from ..configuration.model import check_model, kinds_of
from ..configuration.reading import read_config
from ..engine.trainer import BNTrainer
from .plan import Arm, Study


def arm_config(study: Study, arm: Arm, *, workers: int, here: bool) -> CfgNode:
    """The frozen config of an arm.

    Args:
        workers: processes (GPUs) of a run.
        here: it will run on this machine; else its device is not looked for.

    Raises:
        ValueError: a key or value that cannot work; names the study's file, the arm, key and value.
    """
    options: list = []
    try:
        _read(study, options)
        for key, value in study.options_of(arm).items():
            options += [key, value]
            try:
                cfg = _read(study, options)
            except ValueError as error:
                raise ValueError(f"options: {key}: {value!r}: {error}") from error
        cfg = _read(study, options)
        checked = cfg.clone()
        checked.defrost()
        if not here:
            checked.MODEL.DEVICE = "cpu"
        trains, precise = study.train and arm.inference_of is None, cfg.TEST.PRECISE_BN.ENABLED
        model = check_run(checked, workers, BNTrainer, (), trains=trains, precise=precise)
        if "evaluation" in study.measure and "precise" in kinds_of(model):
            check_model(checked, model, trains=False, precise=True)
    except ValueError as error:
        raise ValueError(f"{study.file}: arm {arm.name!r}: {error}") from error
    return cfg


def _read(study: Study, options: list) -> CfgNode:
    return read_config(argparse.Namespace(config_file=study.base, opts=options))
