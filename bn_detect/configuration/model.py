"""Ask the built model whether it does what the config says: which layers follow MODEL.ROI_BN, how
many classes it knows, and whether the layers that keys speak of are there."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import DatasetSummary
from ..layers import ImageLayout, LevelBatchNorm2d, RoIBatchNorm2d
from ..layers.watching import watched_layouts
from ..modeling.image_classifier import BNImageClassifier
from ..population.bn_layers import select_bn_layers
from .keys import changed_keys
from .values import flat_keys, value_of

# Parts of the RoI heads: the key that names the class, and the class that follows MODEL.ROI_BN.
_PARTS = {
    "box_head": ("MODEL.ROI_BOX_HEAD.NAME", "BNConvFCHead"),
    "mask_head": ("MODEL.ROI_MASK_HEAD.NAME", "BNMaskConvUpsampleHead"),
    "keypoint_head": ("MODEL.ROI_KEYPOINT_HEAD.NAME", "BNKRCNNConvDeconvUpsampleHead"),
}
_WHOLE = ("MODEL.ROI_HEADS.NAME", "BNRes5ROIHeads")
EVAL_STATS = ("population", "minibatch", "precise")  # in the order of tables
_GIVE_LAYOUTS = "'BNStandardROIHeads', 'BNCascadeROIHeads' or 'BNRes5ROIHeads'"


def check_model(cfg: CfgNode, model: nn.Module, *, trains: bool, precise: bool) -> None:
    """Raise ValueError, naming key and value, for the first setting that the model ignores.

    Args:
        model: built from `cfg`, on any device.
        trains: whether FREEZE_ITER and LOG_STATS, if they are set, will have their effect.
        precise: whether there will be a PreciseBN pass.
    """
    heads = getattr(model, "roi_heads", None)
    rpn_head = getattr(getattr(model, "proposal_generator", None), "rpn_head", None)
    keypoint_head = getattr(heads, "keypoint_head", None)
    _check_has_norm(cfg, keypoint_head, "MODEL.ROI_KEYPOINT_HEAD.NORM", *_PARTS["keypoint_head"])
    _check_has_norm(cfg, rpn_head, "MODEL.RPN.NORM", "MODEL.RPN.HEAD_NAME", "BNRPNHead")
    levels = changed_keys(cfg, "MODEL.LEVEL_BN")
    if levels and not _has(model, LevelBatchNorm2d):
        raise ValueError(
            f"{', '.join(levels)}: set, but no head has BatchNorm over the feature levels; use "
            "MODEL.META_ARCHITECTURE 'BNRetinaNet' with MODEL.RETINANET.NORM 'SyncBN', or "
            "MODEL.RPN.HEAD_NAME 'BNRPNHead' with MODEL.RPN.NORM 'SyncBN'"
        )
    changed = changed_keys(cfg, "MODEL.ROI_BN", but=("FREEZE", "LOG"))
    if changed:
        _check_followers(cfg, model, heads, ", ".join(changed))
    roi_bn = cfg.MODEL.ROI_BN
    if trains and roi_bn.FREEZE_ITER >= 0:
        with naming("MODEL.ROI_BN.FREEZE_MODULES"):
            select_bn_layers(model, roi_bn.FREEZE_MODULES or None)
    if trains and roi_bn.LOG_STATS > 0 and not _has(model, RoIBatchNorm2d):
        raise ValueError(
            f"MODEL.ROI_BN.LOG_STATS is {roi_bn.LOG_STATS}, but no RoI head has BatchNorm"
        )
    if precise:
        with naming("TEST.PRECISE_BN.MODULES"):
            select_bn_layers(model, cfg.TEST.PRECISE_BN.MODULES or None)


def check_statistics(statistics: Sequence[str], model: nn.Module) -> None:
    """Raise ValueError for a kind of test statistics that is unknown, or the same as "population"
    for this model; the message names --eval-stats."""
    for kind in statistics:
        if kind not in EVAL_STATS:
            raise ValueError(f"--eval-stats is {kind!r}; it must be of {', '.join(EVAL_STATS)}")
        if kind not in kinds_of(model):
            raise ValueError(
                f"--eval-stats is {kind!r}, but no BatchNorm layer of this model takes part in it; "
                f"it must be of {', '.join(kinds_of(model))}"
            )


def kinds_of(model: nn.Module) -> tuple[str, ...]:
    """Return the kinds of test statistics that mean something for a model; "population" always."""
    means = {
        "population": True,
        "minibatch": _has(model, RoIBatchNorm2d),
        "precise": _has(model, _BatchNorm),
    }
    return tuple(kind for kind in EVAL_STATS if means[kind])


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def _check_has_norm(
    cfg: CfgNode, head: nn.Module | None, key: str, name_key: str, ours: str
) -> None:
    """Check a NORM key of this package that Detectron2's own head ignores."""
    norm = value_of(cfg, key)
    if norm and head is not None and not any("Norm" in type(m).__name__ for m in head.modules()):
        raise ValueError(
            f"{name_key} is {value_of(cfg, name_key)!r}, which has no norm ({key} is {norm!r}); "
            f"use {ours!r}"
        )


def _check_followers(cfg: CfgNode, model: nn.Module, heads: nn.Module | None, changed: str) -> None:
    """Check that BatchNorm in RoI heads follows MODEL.ROI_BN, and knows the images if it must."""
    for name, layer in heads.named_modules() if heads is not None else ():
        if type(layer) is nn.BatchNorm2d:
            key, ours = _PARTS.get(name.partition(".")[0], _WHOLE)
            raise ValueError(
                f"{key} is {value_of(cfg, key)!r}, which does not follow MODEL.ROI_BN ({changed} "
                f"is set); use {ours!r}"
            )
    layouts = [m.layout for m in model.modules() if isinstance(m, RoIBatchNorm2d)]
    if not layouts and isinstance(model, BNImageClassifier):
        raise ValueError(
            f"{changed}: set, but MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM!r}; a "
            "normalization batch needs 'BN'"
        )
    if not layouts:
        raise ValueError(
            f"{changed}: set, but no RoI head has BatchNorm; set its NORM to 'BN', for example "
            "MODEL.ROI_BOX_HEAD.NORM BN with MODEL.ROI_BOX_HEAD.NUM_CONV 4"
        )
    informed = watched_layouts(model)
    for layout in layouts:
        knows = isinstance(layout, ImageLayout) or layout in informed
        if (layout.settings.needs_images or layout.settings.needs_labels) and not knows:
            fact = "class" if layout.settings.needs_labels else "image"
            raise ValueError(
                f"MODEL.ROI_BN needs the {fact} of each RoI ({changed}), but the pooler of "
                f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME!r} gives no layout; use "
                f"{_GIVE_LAYOUTS}"
            )


def check_classes(cfg: CfgNode, model: nn.Module, summaries: Mapping[str, DatasetSummary]) -> None:
    """Raise ValueError where a dataset has more classes than the model, or a classifier's others.

    Args:
        summaries: of the datasets, which were read, by name.
    """
    heads = getattr(model, "roi_heads", None)
    classes = getattr(model if heads is None else heads, "num_classes", None)
    if classes is None:  # as in a proposal network, or a head of another project
        return
    classifies = isinstance(model, BNImageClassifier)
    for name, summary in summaries.items():
        own = len(MetadataCatalog.get(name).get("classes", ())) if classifies else 0
        number = own or summary.categories
        if number > classes or (classifies and number != classes):
            raise ValueError(
                f"{_classes_key(cfg, heads is not None)} is {classes}, but dataset {name!r} has "
                f"{number} classes"
            )


def _classes_key(cfg: CfgNode, has_heads: bool) -> str:
    """Return the key of the model's classes: in the section called as a part of the model."""
    if has_heads:
        return "MODEL.ROI_HEADS.NUM_CLASSES"
    for key, _ in flat_keys(cfg.MODEL, "MODEL."):
        *_, section, name = key.split(".")
        if name == "NUM_CLASSES" and section.lower() in cfg.MODEL.META_ARCHITECTURE.lower():
            return key
    return f"NUM_CLASSES of MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Let a ValueError begin with the config key that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
