"""Find configs that nothing can be built from, by building it."""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any, Protocol

import detectron2.modeling
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from .values import flat_keys

_NORMS = "'', BN, SyncBN, FrozenBN, GN, LN or another name that detectron2.layers.get_norm knows"


class Builder(Protocol):
    """The class methods of a trainer that build parts, as `DefaultTrainer` has them."""

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode: ...
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module: ...
    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Any: ...
    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Any) -> Any: ...
    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> Any: ...


def build_trial(cfg: CfgNode, builder: type[Builder]) -> nn.Module:
    """Build on the CPU what a run needs beside data; returns the model.

    Raises:
        ValueError: a part cannot be built; names it, and the key where a name is not registered.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    with _quiet():
        with _refused(cfg, "model"):
            model = builder.build_model(cfg)
        with _refused(cfg, "optimizer"):
            optimizer = builder.build_optimizer(cfg, model)
        with _refused(cfg, "schedule of learning rates"):
            builder.build_lr_scheduler(cfg, optimizer)
        for is_train in (True, False) if cfg.DATASETS.TRAIN else ():
            with _refused(cfg, "mapper of images"):
                builder.build_mapper(cfg, is_train)
    return model


@contextlib.contextmanager
def _refused(cfg: CfgNode, part: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Detectron2 and torch raise nearly anything
        text = " ".join(str(error).split()) or "no more is known"
        unregistered = re.search(r"No object named '(.*)' found in '(.*)' registry", text)
        if unregistered is not None:
            raise ValueError(_unregistered(cfg, *unregistered.groups())) from error
        if isinstance(error, KeyError) and (unknown := _unknown(cfg, error.args[0])):
            raise ValueError(unknown) from error
        name = type(error).__name__
        raise ValueError(f"the config gives no {part}: {name}: {text:.300}") from error


def _unknown(cfg: CfgNode, name: object) -> str:
    """Return what to say of the keys whose value was looked up and not found; "" for none."""
    keys = [key for key, value in flat_keys(cfg) if name and value == name]
    norms = any(key.endswith("NORM") for key in keys)
    remedy = f"; it must be {_NORMS}" if norms else ""
    return f"{' or '.join(keys)} is {name!r}, which is not known{remedy}" if keys else ""


def _unregistered(cfg: CfgNode, name: str, registry_name: str) -> str:
    keys = [key for key, value in flat_keys(cfg) if value == name]
    registries = [r for r in vars(detectron2.modeling).values() if isinstance(r, Registry)]
    known = [key for r in registries if r._name == registry_name for key, _ in r]
    return (
        f"{' or '.join(keys) or registry_name} is {name!r}, which is not registered; registered "
        f"are {', '.join(sorted(known)) or 'others'}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the messages of what is built: the run itself logs them."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
