"""Find configs that nothing can be built from, by building it."""

import contextlib
import logging
from collections.abc import Iterator

from detectron2.config import CfgNode
from torch import nn

from ..population.bn_layers import select_bn_layers
from .log_statistics import roi_bn_layers
from .trainer import BNTrainer, naming


def check_builds(cfg: CfgNode) -> nn.Module:
    """Build on the CPU what a run needs beside data; returns the model, for other checks.

    Raises:
        ValueError: a part that cannot be built; names it, and says what its maker says.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    with _unlogged():
        with _refused("model"):
            model = BNTrainer.build_model(cfg)
        with _refused("optimizer"):
            optimizer = BNTrainer.build_optimizer(cfg, model)
        with _refused("schedule of learning rates"):
            BNTrainer.build_lr_scheduler(cfg, optimizer)
        for is_train in (True, False):
            with _refused("mapper of images"):
                BNTrainer.build_mapper(cfg, is_train)
    return model


def check_bn_layers(cfg: CfgNode, model: nn.Module, *, trains: bool, precise: bool) -> None:
    """Raise ValueError, naming the key, where BN layers are asked for that are not there.

    Args:
        model: of the config.
        trains: whether FREEZE_ITER and LOG_STATS, if they are set, will have their effect.
        precise: whether there will be a PreciseBN pass.
    """
    roi_bn = cfg.MODEL.ROI_BN
    if trains and roi_bn.FREEZE_ITER >= 0:
        with naming("MODEL.ROI_BN.FREEZE_MODULES"):
            select_bn_layers(model, roi_bn.FREEZE_MODULES or None)
    if trains and roi_bn.LOG_STATS > 0:
        roi_bn_layers(model)
    if precise:
        with naming("TEST.PRECISE_BN.MODULES"):
            select_bn_layers(model, cfg.TEST.PRECISE_BN.MODULES or None)


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Detectron2 and torch raise nearly anything
        said = " ".join(str(error).split()) or "no more is said"
        name = type(error).__name__
        raise ValueError(f"the config gives no {what}: {name}: {said:.300}") from error


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Without the messages of what is built: the run itself logs them."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
