"""Find configs that nothing can be built from, by building it."""

import contextlib
import logging
from collections.abc import Iterator

from detectron2.config import CfgNode
from torch import nn

from .trainer import BNTrainer


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
