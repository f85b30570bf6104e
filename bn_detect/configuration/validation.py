"""Find what cannot work in a config before anything is built."""

import os
from collections.abc import Callable
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import (
    ROI_KEYPOINT_HEAD_REGISTRY,
    KRCNNConvDeconvUpsampleHead,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import Registry

from ..modeling import (
    BNCascadeROIHeads,
    BNConvFCHead,
    BNKRCNNConvDeconvUpsampleHead,
    BNMaskConvUpsampleHead,
    BNRes5ROIHeads,
    BNStandardROIHeads,
)
from ..population.precise_bn import ROI_SOURCES
from .classifier import CLASSIFIER, check_classifier
from .keys import add_bn_detect_config, naming_keys, normalization_batch
from .levels import check_levels

OPTIMIZERS = ("SGD", "ADAMW")
_WITHOUT_ROI_HEADS = (
    "BNImageClassifier",
    "BNRetinaNet",
    "FCOS",
    "ProposalNetwork",
    "RetinaNet",
    "SemanticSegmentor",
)
_LAYOUT_GIVERS = (BNStandardROIHeads, BNCascadeROIHeads, BNRes5ROIHeads)


def validate_config(cfg: CfgNode, world_size: int, *, trains: bool = True) -> None:
    """Raise ValueError, naming key and value, for the first setting that cannot work.

    Args:
        world_size: workers over all machines.
        trains: whether training images are used, in batches of SOLVER.IMS_PER_BATCH.
    """
    settings = normalization_batch(cfg)
    _check_device(cfg.MODEL.DEVICE)
    if trains:
        _check_images(cfg, world_size)
        with naming_keys():
            settings.spans(world_size)
    _check_population(cfg)
    check_levels(cfg)
    if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
        raise ValueError(
            f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; it must be one of "
            f"{', '.join(OPTIMIZERS)}"
        )

    changed = _changed_roi_bn_keys(cfg)
    check_classifier(cfg, changed)
    heads = _heads_with_bn(cfg)
    if changed and not heads and cfg.MODEL.META_ARCHITECTURE != CLASSIFIER:
        raise ValueError(
            f"{', '.join(changed)}: set, but no RoI head has BatchNorm; set its NORM to 'BN', for "
            "example MODEL.ROI_BOX_HEAD.NORM BN with MODEL.ROI_BOX_HEAD.NUM_CONV 4"
        )
    for key, name, follows in heads:
        if changed and follows is not None:
            raise ValueError(
                f"{key} is {name!r}, which does not follow MODEL.ROI_BN ({', '.join(changed)} is "
                f"set); use {follows!r}"
            )
    asks = settings.needs_images or settings.needs_labels
    if asks and any(key == "MODEL.ROI_BOX_HEAD.NAME" for key, *_ in heads):
        name = cfg.MODEL.ROI_HEADS.NAME
        if not _is_a(ROI_HEADS_REGISTRY.get(name), _LAYOUT_GIVERS):
            raise ValueError(
                f"MODEL.ROI_BN needs the image of each RoI ({', '.join(changed)}), but the pooler "
                f"of MODEL.ROI_HEADS.NAME {name!r} gives no layout; use 'BNStandardROIHeads', "
                "'BNCascadeROIHeads' or 'BNRes5ROIHeads'"
            )


def _check_device(device: str) -> None:
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is {device!r}; it must be cpu, cuda or cuda:N") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, but no CUDA device is available; add MODEL.DEVICE cpu"
        )


def _check_images(cfg: CfgNode, world_size: int) -> None:
    images, workers = cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.ROI_BN.VIRTUAL_WORKERS
    if images < 1 or images % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images}; it must be a positive multiple of the {world_size} "
            "workers"
        )
    if (images // world_size) % workers:
        raise ValueError(
            f"MODEL.ROI_BN.VIRTUAL_WORKERS is {workers}, which does not divide the "
            f"{images // world_size} images of a worker (SOLVER.IMS_PER_BATCH {images} over "
            f"{world_size} workers)"
        )
    with naming_keys():
        normalization_batch(cfg).check_images(images // world_size // workers)


def _check_population(cfg: CfgNode) -> None:
    source, num_iter = cfg.TEST.PRECISE_BN.ROI_SOURCE, cfg.TEST.PRECISE_BN.NUM_ITER
    if source not in ROI_SOURCES:
        raise ValueError(
            f"TEST.PRECISE_BN.ROI_SOURCE is {source!r}; it must be one of {', '.join(ROI_SOURCES)}"
        )
    if num_iter < 1:  # LOG_STATS, --eval-stats and studies need it too
        raise ValueError(f"TEST.PRECISE_BN.NUM_ITER is {num_iter}; it must be at least 1")
    if cfg.MODEL.ROI_BN.FREEZE_ITER >= 0 and cfg.MODEL.ROI_BN.TEST_STATS == "minibatch":
        raise ValueError(
            f"MODEL.ROI_BN.FREEZE_ITER is {cfg.MODEL.ROI_BN.FREEZE_ITER} with TEST_STATS "
            "'minibatch': a head trained with frozen statistics is evaluated with them; use "
            "TEST_STATS 'population', or FREEZE_ITER -1"
        )


def check_weights(cfg: CfgNode, *, resume: bool) -> None:
    """Raise ValueError where MODEL.WEIGHTS is a local file that is not there; URLs are not tried.

    Args:
        resume: go on from the checkpoint in OUTPUT_DIR; where there is one, no other is read.
    """
    if resume and PathManager.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return
    url = urlparse(cfg.MODEL.WEIGHTS)
    path = url._replace(query="").geturl()  # "?matching_heuristics=True" is for Detectron2
    if path and not url.scheme and not PathManager.isfile(path):
        raise ValueError(f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}, but there is no such file")


def _changed_roi_bn_keys(cfg: CfgNode) -> list[str]:
    default = get_cfg()
    add_bn_detect_config(default)
    return [
        f"MODEL.ROI_BN.{key} {value}"
        for key, value in cfg.MODEL.ROI_BN.items()
        if value != default.MODEL.ROI_BN[key] and not key.startswith(("FREEZE", "LOG"))
    ]


def _heads_with_bn(cfg: CfgNode) -> list[tuple[str, str, str | None]]:
    """(key of the head's name, its name, the class to use instead where it ignores ROI_BN)."""
    model = cfg.MODEL
    if model.META_ARCHITECTURE in _WITHOUT_ROI_HEADS:
        return []
    found = []

    def look(key: str, name: str, registry: Registry, ours: type, has_bn: bool) -> None:
        head = _registered(registry, key, name)
        if has_bn:
            found.append((key, name, None if _is_a(head, ours) else ours.__name__))

    key, name = "MODEL.ROI_HEADS.NAME", model.ROI_HEADS.NAME
    roi_heads = _registered(ROI_HEADS_REGISTRY, key, name)
    box, mask, keypoint = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD, model.ROI_KEYPOINT_HEAD
    if _is_a(roi_heads, Res5ROIHeads):
        norm = (box.NORM if _is_a(roi_heads, BNRes5ROIHeads) else "") or model.RESNETS.NORM
        look(key, name, ROI_HEADS_REGISTRY, BNRes5ROIHeads, norm == "BN")
    elif box.NAME or _is_a(roi_heads, StandardROIHeads):
        has_bn = box.NORM == "BN" and box.NUM_CONV > 0
        look("MODEL.ROI_BOX_HEAD.NAME", box.NAME, ROI_BOX_HEAD_REGISTRY, BNConvFCHead, has_bn)
    if model.MASK_ON:
        key, has_bn = "MODEL.ROI_MASK_HEAD.NAME", mask.NORM == "BN" and mask.NUM_CONV > 0
        look(key, mask.NAME, ROI_MASK_HEAD_REGISTRY, BNMaskConvUpsampleHead, has_bn)
    if model.KEYPOINT_ON:
        key, ours = "MODEL.ROI_KEYPOINT_HEAD.NAME", BNKRCNNConvDeconvUpsampleHead
        look(key, keypoint.NAME, ROI_KEYPOINT_HEAD_REGISTRY, ours, keypoint.NORM == "BN")
        stock = ROI_KEYPOINT_HEAD_REGISTRY.get(keypoint.NAME) is KRCNNConvDeconvUpsampleHead
        if stock and keypoint.NORM:
            raise ValueError(
                f"{key} is {keypoint.NAME!r}, which has no norm (MODEL.ROI_KEYPOINT_HEAD.NORM is "
                f"{keypoint.NORM!r}); use {ours.__name__!r}"
            )
    return found


def _is_a(registered: Callable, ours: type | tuple[type, ...]) -> bool:
    """Whether it is a class, not a function, and one of `ours`."""
    return isinstance(registered, type) and issubclass(registered, ours)


def _registered(registry: Registry, key: str, name: str) -> Callable:
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry))
        raise ValueError(f"{key} is {name!r}, which is not registered; registered are {known}")
    return registry.get(name)
