"""LazyConfig files: a `.py` with `model`, `dataloader` and `train` as a config of this package.

Executing the file is how it is read; nothing here makes that safe. The config that `read` makes of
it has Detectron2's own keys for what commands ask of every config (datasets, images per batch,
device), and names the file and its overrides, from which the trainer builds model, mappers and
optimizer.
"""

import copy
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import DatasetMapper
from detectron2.solver import LRMultiplier
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..data import BNDatasetMapper
from ..layers.convert import layouts_of
from .files import find
from .values import check_keys

SUFFIX = ".py"
OVERRIDE = re.compile(r"[+~]*[a-z]\w*(\.\w+)+")  # a key of LazyConfig; those of YAML are capitals
# Keys of this package's config -> where a LazyConfig has the value, and where it may not be.
_DERIVED = {
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "DATALOADER.ASPECT_RATIO_GROUPING": "dataloader.train.aspect_ratio_grouping",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "dataloader.train.dataset.filter_empty",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "INPUT.FORMAT": "dataloader.train.mapper.image_format",
    "INPUT.MASK_FORMAT": "dataloader.train.mapper.instance_mask_format",
    "MODEL.DEVICE": "train.device",
    "MODEL.KEYPOINT_ON": "dataloader.train.mapper.use_keypoint",
    "MODEL.MASK_ON": "dataloader.train.mapper.use_instance_mask",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.MAX_ITER": "train.max_iter",
    "TEST.EVAL_PERIOD": "train.eval_period",
}
# Keys of this package's config that have their effect with a LazyConfig as well.
_OWN = (
    "DATALOADER.SAMPLER_TRAIN",
    "DATASETS.",
    "MODEL.ROI_BN.FREEZE_",
    "MODEL.ROI_BN.LOG_STATS",
    "MODEL.ROI_BN.VIRTUAL_WORKERS",
    "TEST.PRECISE_BN.",
)
_OF_THE_MACHINE = ("device", "output_dir", "num_workers")


def is_lazy(cfg: CfgNode) -> bool:
    """Return whether the config was read from a LazyConfig."""
    return bool(cfg.MODEL.LAZY_CONFIG.FILE)


def merge_lazy_config(cfg: CfgNode, file: str, words: Sequence[Any]) -> list[Any]:
    """Take over a LazyConfig into `cfg`, in place.

    Args:
        file: its `.py` file.
        words: after it on the command line: overrides in its own syntax (`model.x.y=z`, or the key
            and the value as two words), and KEY VALUE pairs of this package.

    Returns:
        the KEY VALUE pairs, which are to be merged next.

    Raises:
        ValueError: the file cannot be executed or lacks a part, an override is none, or a KEY has
            no effect here.
    """
    overrides, pairs = _divided(words)
    check_keys(pairs)
    path = str(find(file).resolve())
    tree = _load(path, overrides)
    node = cfg.MODEL.LAZY_CONFIG
    node.FILE, node.OVERRIDES, node.DIGEST = path, overrides, _digest(tree)
    for key, place in _DERIVED.items():
        value = OmegaConf.select(tree, place)
        if value is not None:
            if key.startswith("DATASETS."):
                value = (value,) if isinstance(value, str) else tuple(value)
            section, _, name = key.rpartition(".")
            parent = cfg
            for part in filter(None, section.split(".")):
                parent = parent[part]
            if type(parent[name]) is bool and type(value) is not bool:
                raise ValueError(f"{file}: {place} is {value!r}; it must be True or False")
            parent[name] = value
    for key in pairs[::2]:
        if key not in _DERIVED and not str(key).startswith(_OWN):
            raise ValueError(
                f"{key} has no effect on the LazyConfig {file}; write an override in its own "
                "syntax, such as model.roi_heads.box_head.roi_batch.batch=shuffled"
            )
    return pairs


def _divided(words: Sequence[Any]) -> tuple[list[str], list[Any]]:
    """Return the overrides, each as key=value, and the KEY VALUE pairs."""
    overrides: list[str] = []
    pairs: list[Any] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, _ = str(word).partition("=")
        if not OVERRIDE.fullmatch(key):
            pairs += [word, *rest[:1]]
            rest = rest[1:]
        elif equals:
            overrides.append(str(word))
        elif rest:
            overrides.append(f"{key}={_written(rest.pop(0))}")
        else:
            raise ValueError(f"{word!r} has no value; write {word}=VALUE")
    return overrides, pairs


def in_two(word: str) -> tuple[str, ...]:
    """Return the key and the value of an override; any other word by itself."""
    key, equals, value = word.partition("=")
    return (key, value) if equals and OVERRIDE.fullmatch(key) else (word,)


def _written(value: Any) -> str:
    """Write a value of a YAML file as an override has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _load(file: str, overrides: Sequence[str]) -> DictConfig:
    try:
        tree: DictConfig = LazyConfig.load(file)
    except Exception as error:  # it is a program
        text = " ".join(str(error).split())
        advice = ""
        if isinstance(error, ModuleNotFoundError) and error.name == "pkg_resources":
            advice = '; Detectron2\'s model zoo needs pip install "setuptools<82"'
        raise ValueError(
            f"--config-file {file}: {type(error).__name__}: {text:.300}{advice}"
        ) from error
    for part in ("model", "dataloader", "train"):
        if part not in tree:
            raise ValueError(
                f"--config-file {file} has no {part}; a LazyConfig must have model, dataloader and "
                "train"
            )
    for override in overrides:
        key = override.partition("=")[0]
        parent = OmegaConf.select(tree, key.lstrip("+~").rpartition(".")[0])
        if parent is None and not key.startswith("+"):
            raise ValueError(
                f"{override}: {file} has no {key.rpartition('.')[0]}; write +{override} to add it"
            )
        try:
            LazyConfig.apply_overrides(tree, [override.lstrip("+")])
        except Exception as error:  # of Hydra's parser, and of OmegaConf
            text = " ".join(str(error).split())
            raise ValueError(f"{override}: {type(error).__name__}: {text:.300}") from error
    return tree


def tree_of(cfg: CfgNode) -> DictConfig:
    """Return the LazyConfig of `cfg`, executed again.

    Raises:
        ValueError: the file is another one now than when `cfg` was read.
    """
    node = cfg.MODEL.LAZY_CONFIG
    tree = _load(node.FILE, node.OVERRIDES)
    if _digest(tree) != node.DIGEST:
        raise ValueError(
            f"{node.FILE} gives another model or other data than when this run was planned; "
            "restore the file, or begin the run anew"
        )
    return tree


def build_model(cfg: CfgNode) -> nn.Module:
    """Instantiate the model on the device of `cfg`."""
    model: nn.Module = instantiate(tree_of(cfg).model)
    times = cfg.MODEL.ROI_BN.VIRTUAL_WORKERS
    for layout in layouts_of(model):
        own = layout.settings
        layout.settings = replace(
            own,
            virtual_workers=own.virtual_workers * times,
            exchange=own.exchange if times == 1 else "statistics",
            seed=max(cfg.SEED, 0),
        )
    return model.to(torch.device(cfg.MODEL.DEVICE))


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict[str, Any]], Any]:
    """Instantiate the mapper of `dataloader.train` or `dataloader.test`."""
    loaders = tree_of(cfg).dataloader
    return _mapper(
        loaders.train.mapper if is_train or "test" not in loaders else loaders.test.mapper
    )


def build_probe_mapper(cfg: CfgNode) -> Callable[[dict[str, Any]], Any] | None:
    """Instantiate the mapper of training with the augmentations of testing; None for YAML."""
    if not is_lazy(cfg):
        return None
    loaders = tree_of(cfg).dataloader
    mapper = copy.deepcopy(loaders.train.mapper)
    if "test" in loaders:
        mapper.augmentations = loaders.test.mapper.augmentations
    return _mapper(mapper)


def _mapper(lazy: DictConfig) -> Callable[[dict[str, Any]], Any]:
    lazy = copy.deepcopy(lazy)
    if lazy._target_ in (DatasetMapper, "detectron2.data.DatasetMapper"):
        lazy._target_ = BNDatasetMapper  # the same, and it knows corrupted datasets
    mapper: Callable[[dict[str, Any]], Any] = instantiate(lazy)
    return mapper


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer | None:
    """Instantiate `optimizer` for the model; None where the file has none."""
    lazy = tree_of(cfg).get("optimizer")
    if lazy is None:
        return None
    lazy.params.model = model
    optimizer: torch.optim.Optimizer = instantiate(lazy)
    return optimizer


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier | None:
    """Instantiate `lr_multiplier`; None where the file has none."""
    lazy = tree_of(cfg).get("lr_multiplier")
    if lazy is None:
        return None
    return LRMultiplier(optimizer, multiplier=instantiate(lazy), max_iter=cfg.SOLVER.MAX_ITER)


def check_trains(cfg: CfgNode) -> None:
    """Raise ValueError where the file lacks what training needs."""
    for name in ("optimizer", "lr_multiplier") if is_lazy(cfg) else ():
        if name not in tree_of(cfg):
            raise ValueError(f"{cfg.MODEL.LAZY_CONFIG.FILE} has no {name}, which training needs")


def _digest(tree: DictConfig) -> str:
    """Hash the parts of a file that determine the results.

    Returns:
        two hashes, with "-" between them: of `model` and `optimizer`, and of everything.
    """
    content = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(content, dict)
    kept = {name: content.get(name) for name in ("model", "optimizer")}
    parts = (hashlib.sha256(_plain(part).encode()).hexdigest()[:16] for part in (kept, content))
    return "-".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        items = sorted((str(k), _plain(v)) for k, v in value.items() if k not in _OF_THE_MACHINE)
        return str(items)
    if isinstance(value, list | tuple):
        return str([_plain(each) for each in value])
    if getattr(value, "__name__", "") == "<lambda>":
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return "<lambda>"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
