"""Every configuration error, by its message, and configs that are fine."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead

from bn_detect import add_bn_detect_config
from bn_detect.configuration.validation import validate_config

from ..modeling.small import KINDS, SETTINGS, config, setting_name


@ROI_BOX_HEAD_REGISTRY.register()
def build_stock_box_head(cfg: CfgNode, input_shape):
    """Projects register functions too."""
    return FastRCNNConvFCHead(cfg, input_shape)


def _check(kind: str, options: tuple = (), *, workers: int = 2, **kwargs) -> None:
    cfg = config(kind, **kwargs)
    cfg.merge_from_list(list(options))
    validate_config(cfg, workers)


def _stock(kind: str, *options) -> CfgNode:
    """A config of Detectron2's model zoo, on the CPU."""
    cfg = get_cfg()
    add_bn_detect_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(f"{kind}.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


BATCH, EXCHANGE = "MODEL.ROI_BN.BATCH", "MODEL.ROI_BN.EXCHANGE"
VIRTUAL = "MODEL.ROI_BN.VIRTUAL_WORKERS"
BOX_NAME, MASK_NAME = "MODEL.ROI_BOX_HEAD.NAME", "MODEL.ROI_MASK_HEAD.NAME"
HEADS_NAME, KEYPOINT_NAME = "MODEL.ROI_HEADS.NAME", "MODEL.ROI_KEYPOINT_HEAD.NAME"
BOX_NORM, MASK_NORM = "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM"

ERRORS = [
    (
        "box",
        [BATCH, "gpu"],
        "MODEL.ROI_BN.BATCH is 'gpu'; it must be one of images, worker, shuffled, global",
    ),
    ("box", [BATCH, "batch"], "MODEL.ROI_BN.BATCH is 'batch'; it must be one of images, worker"),
    (
        "box",
        [EXCHANGE, "rois"],
        "MODEL.ROI_BN.EXCHANGE is 'rois'; it must be one of statistics, features",
    ),
    (
        "box",
        ["MODEL.ROI_BN.TEST_STATS", "ema"],
        "MODEL.ROI_BN.TEST_STATS is 'ema'; it must be one of population, minibatch",
    ),
    (
        "box",
        ["MODEL.ROI_BN.IMAGES_PER_GROUP", 0],
        "MODEL.ROI_BN.IMAGES_PER_GROUP is 0; it must be at least 1",
    ),
    ("box", [VIRTUAL, 0], "MODEL.ROI_BN.VIRTUAL_WORKERS is 0; it must be at least 1"),
    (
        "box",
        [VIRTUAL, 3],
        "MODEL.ROI_BN.VIRTUAL_WORKERS is 3, which does not divide the 8 images of a worker "
        r"(SOLVER.IMS_PER_BATCH 16 over 2 workers)",
    ),
    (
        "box",
        [BATCH, "shuffled", VIRTUAL, 4, "MODEL.ROI_BN.SHUFFLE_GROUPS", 16],
        "MODEL.ROI_BN.SHUFFLE_GROUPS is 16, which does not divide the 8 workers (2 processes, "
        "VIRTUAL_WORKERS 4); use one of 1, 2, 4, 8, or 0 for all workers",
    ),
    (
        "box",
        [BATCH, "shuffled", EXCHANGE, "features", VIRTUAL, 2],
        "MODEL.ROI_BN.EXCHANGE is 'features' with VIRTUAL_WORKERS 2: features move between "
        "processes only; use EXCHANGE 'statistics', or VIRTUAL_WORKERS 1",
    ),
    (
        "box",
        [BATCH, "shuffled", BOX_NORM, "GN"],
        "MODEL.ROI_BN.BATCH shuffled: set, but no RoI head has BatchNorm; set its NORM to 'BN'",
    ),
    (
        "box",
        [BATCH, "global", "MODEL.ROI_BOX_HEAD.NUM_CONV", 0],
        "MODEL.ROI_BN.BATCH global: set, but no RoI head has BatchNorm",
    ),
    (
        "mask",  # the norms of heads that are off do not count
        [BATCH, "images", BOX_NORM, "", "MODEL.MASK_ON", False],
        "MODEL.ROI_BN.BATCH images: set, but no RoI head has BatchNorm",
    ),
    (
        "c4",
        [BATCH, "images", BOX_NORM, "", MASK_NORM, ""],
        "MODEL.ROI_BN.BATCH images: set, but no RoI head has BatchNorm",
    ),
    (
        "box",
        [BATCH, "shuffled", "MODEL.META_ARCHITECTURE", "RetinaNet"],
        "MODEL.ROI_BN.BATCH shuffled: set, but no RoI head has BatchNorm",
    ),
    (
        "box",
        [BATCH, "shuffled", BOX_NAME, "FastRCNNConvFCHead"],
        "MODEL.ROI_BOX_HEAD.NAME is 'FastRCNNConvFCHead', which does not follow MODEL.ROI_BN "
        "(MODEL.ROI_BN.BATCH shuffled is set); use 'BNConvFCHead'",
    ),
    (
        "box",
        [BATCH, "shuffled", BOX_NAME, "build_stock_box_head"],
        "MODEL.ROI_BOX_HEAD.NAME is 'build_stock_box_head', which does not follow MODEL.ROI_BN",
    ),
    (
        "mask",
        [VIRTUAL, 2, MASK_NAME, "MaskRCNNConvUpsampleHead"],
        "MODEL.ROI_MASK_HEAD.NAME is 'MaskRCNNConvUpsampleHead', which does not follow "
        "MODEL.ROI_BN (MODEL.ROI_BN.VIRTUAL_WORKERS 2 is set); use 'BNMaskConvUpsampleHead'",
    ),
    (
        "keypoint",
        [BATCH, "global", KEYPOINT_NAME, "KRCNNConvDeconvUpsampleHead"],
        "MODEL.ROI_KEYPOINT_HEAD.NAME is 'KRCNNConvDeconvUpsampleHead', which has no norm "
        "(MODEL.ROI_KEYPOINT_HEAD.NORM is 'BN'); use 'BNKRCNNConvDeconvUpsampleHead'",
    ),
    (
        "keypoint",
        [KEYPOINT_NAME, "KRCNNConvDeconvUpsampleHead", "MODEL.ROI_KEYPOINT_HEAD.NORM", "GN"],
        "MODEL.ROI_KEYPOINT_HEAD.NAME is 'KRCNNConvDeconvUpsampleHead', which has no norm "
        "(MODEL.ROI_KEYPOINT_HEAD.NORM is 'GN'); use 'BNKRCNNConvDeconvUpsampleHead'",
    ),
    (
        "c4",
        [BATCH, "shuffled", HEADS_NAME, "Res5ROIHeads", "MODEL.RESNETS.NORM", "BN"],
        "MODEL.ROI_HEADS.NAME is 'Res5ROIHeads', which does not follow MODEL.ROI_BN",
    ),
    (
        "box",
        [BATCH, "images", HEADS_NAME, "StandardROIHeads"],
        "MODEL.ROI_BN needs the image of each RoI (MODEL.ROI_BN.BATCH images), but the pooler of "
        "MODEL.ROI_HEADS.NAME 'StandardROIHeads' gives no layout; use 'BNStandardROIHeads'",
    ),
    (
        "cascade",
        ["MODEL.ROI_BN.TEST_STATS", "minibatch", HEADS_NAME, "CascadeROIHeads"],
        "MODEL.ROI_BN needs the image of each RoI (MODEL.ROI_BN.TEST_STATS minibatch), but the "
        "pooler of MODEL.ROI_HEADS.NAME 'CascadeROIHeads' gives no layout",
    ),
    (
        "box",
        [HEADS_NAME, "BNRoIHeads"],
        "MODEL.ROI_HEADS.NAME is 'BNRoIHeads', which is not registered; registered are "
        "BNCascadeROIHeads, BNRes5ROIHeads, BNStandardROIHeads",
    ),
    (
        "box",
        [BOX_NAME, "BNConvFcHead", BOX_NORM, "GN"],
        "MODEL.ROI_BOX_HEAD.NAME is 'BNConvFcHead', which is not registered; registered are "
        "BNConvFCHead",
    ),
    (
        "c4",
        [MASK_NAME, "BNMaskHead", MASK_NORM, ""],
        "MODEL.ROI_MASK_HEAD.NAME is 'BNMaskHead', which is not registered",
    ),
    (
        "keypoint",
        [KEYPOINT_NAME, "BNKeypointHead"],
        "MODEL.ROI_KEYPOINT_HEAD.NAME is 'BNKeypointHead', which is not registered",
    ),
    (
        "box",
        ["SOLVER.IMS_PER_BATCH", 7],
        "SOLVER.IMS_PER_BATCH is 7; it must be a positive multiple of the 2 workers",
    ),
    (
        "box",
        ["SOLVER.IMS_PER_BATCH", 0],
        "SOLVER.IMS_PER_BATCH is 0; it must be a positive multiple of the 2 workers",
    ),
]


@pytest.mark.parametrize(("kind", "options", "message"), ERRORS)
def test_error_names_key_and_value(kind, options, message):
    with pytest.raises(ValueError) as error:
        _check(kind, options)
    assert message in str(error.value)


def test_absent_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda', but no CUDA device is available"):
        _check("box", ["MODEL.DEVICE", "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _check("box", ["MODEL.DEVICE", "cuda"])


@pytest.mark.parametrize("setting", SETTINGS, ids=setting_name)
@pytest.mark.parametrize("kind", KINDS)
def test_good_configs_pass(kind, setting):
    _check(kind, **setting)


GOOD = [
    ("box", ["MODEL.ROI_BN.TEST_STATS", "minibatch"]),
    ("box", [BOX_NORM, "GN"]),
    ("box", [BOX_NORM, ""]),
    ("box", [VIRTUAL, 8]),
    # A worker's batch is what the stock heads have.
    ("box", [BOX_NAME, "FastRCNNConvFCHead", HEADS_NAME, "StandardROIHeads"]),
    ("mask", [MASK_NAME, "MaskRCNNConvUpsampleHead"]),
    ("c4", [HEADS_NAME, "Res5ROIHeads", "MODEL.RESNETS.NORM", "BN"]),
    ("box", [BOX_NAME, "build_stock_box_head"]),
    # These batches do not ask for the image of a RoI, and mask heads inform themselves.
    ("box", [BATCH, "shuffled", VIRTUAL, 2, HEADS_NAME, "StandardROIHeads"]),
    ("box", [BATCH, "global", HEADS_NAME, "StandardROIHeads"]),
    ("mask", [BATCH, "images", HEADS_NAME, "StandardROIHeads", BOX_NORM, "GN"]),
    # res5 takes the norm of the backbone.
    ("c4", [BATCH, "images", BOX_NORM, "", MASK_NORM, "", "MODEL.RESNETS.NORM", "BN"]),
    # A head that is off is not looked at.
    ("box", [MASK_NAME, "Nothing", KEYPOINT_NAME, "Nothing"]),
    ("c4", [BOX_NAME, "Nothing"]),
]


@pytest.mark.parametrize(("kind", "options"), GOOD)
def test_these_pass_too(kind, options):
    _check(kind, options)


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/retinanet_R_50_FPN_1x",
        "COCO-Detection/rpn_R_50_FPN_1x",
        "COCO-Detection/faster_rcnn_R_50_C4_1x",
        "COCO-Detection/fast_rcnn_R_50_FPN_1x",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
        "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
        "Misc/cascade_mask_rcnn_R_50_FPN_3x",
        "Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn",
        "Misc/semantic_R_50_FPN_1x",
        "PascalVOC-Detection/faster_rcnn_R_50_FPN",
    ],
)
def test_stock_configs_pass(name):
    validate_config(_stock(name), 8)
