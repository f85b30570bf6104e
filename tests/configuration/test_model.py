"""What the built model is asked: which layers follow MODEL.ROI_BN, and which classes it knows."""

import pytest
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead

from bn_detect.configuration.check import check_run
from bn_detect.configuration.keys import default_config
from bn_detect.configuration.model import check_classes
from bn_detect.configuration.trial import build_trial
from bn_detect.data import DatasetSummary
from bn_detect.engine import BNTrainer
from tests.configs.test_configs import load

from ..modeling.small import KINDS, SETTINGS, config, setting_name


@ROI_BOX_HEAD_REGISTRY.register()
def build_stock_box_head(cfg: CfgNode, input_shape):
    """Projects register functions too."""
    return FastRCNNConvFCHead(cfg, input_shape)


def _check(kind: str, options: tuple = (), *, workers: int = 2, **kwargs) -> None:
    cfg = config(kind, **kwargs)
    cfg.merge_from_list(list(options))
    check_run(cfg, workers, BNTrainer, ())


def _stock(kind: str, *options) -> CfgNode:
    """A config of Detectron2's model zoo, on the CPU."""
    cfg = default_config()
    cfg.merge_from_file(model_zoo.get_config_file(f"{kind}.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


BATCH, EXCHANGE = "MODEL.ROI_BN.BATCH", "MODEL.ROI_BN.EXCHANGE"
VIRTUAL = "MODEL.ROI_BN.VIRTUAL_WORKERS"
BOX_NAME, MASK_NAME = "MODEL.ROI_BOX_HEAD.NAME", "MODEL.ROI_MASK_HEAD.NAME"
HEADS_NAME, KEYPOINT_NAME = "MODEL.ROI_HEADS.NAME", "MODEL.ROI_KEYPOINT_HEAD.NAME"
BOX_NORM, MASK_NORM = "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM"

RETINANET = ["MODEL.RETINANET.IN_FEATURES", ["p0"]]
ERRORS = [
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
        [BATCH, "shuffled", "MODEL.META_ARCHITECTURE", "RetinaNet", *RETINANET],
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
]


@pytest.mark.parametrize(("kind", "options", "message"), ERRORS)
def test_error_names_key_and_value(kind, options, message):
    with pytest.raises(ValueError) as error:
        _check(kind, options)
    assert message in str(error.value)


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
    check_run(_stock(name), 8, BNTrainer, ())


def test_a_classifier_without_batchnorm_follows_no_batch():
    cfg = load("digits/Base-digits.yaml")
    cfg.merge_from_list(["MODEL.RESNETS.NORM", "FrozenBN", BATCH, "images"])
    with pytest.raises(ValueError, match="images: set, but MODEL.RESNETS.NORM is 'FrozenBN'"):
        check_run(cfg, 1, BNTrainer, ())


def test_the_number_of_classes_of_a_classifier_is_the_datasets(monkeypatch):
    cfg = load("digits/Base-digits.yaml")
    metadata = MetadataCatalog.get("digits_train")
    monkeypatch.setattr(metadata, "classes", [str(i) for i in range(10)], raising=False)
    summaries = {"digits_train": summary(0)}
    check_classes(cfg, build_trial(cfg, BNTrainer), summaries)
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 12
    with pytest.raises(ValueError, match="CLASSIFIER.NUM_CLASSES is 12, but dataset 'digits_train"):
        check_classes(cfg, build_trial(cfg, BNTrainer), summaries)


def summary(categories: int) -> DatasetSummary:
    return DatasetSummary("a", 1, 1, 0, categories, 0, 1, ())


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("neon/faster_rcnn_lean_FPN_worker.yaml", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("neon/retinanet_lean_FPN_shared_shared_shared.yaml", "MODEL.RETINANET.NUM_CLASSES"),
    ],
)
def test_a_dataset_may_not_have_more_classes_than_the_model(path, key):
    cfg = load(path)
    model = build_trial(cfg, BNTrainer)
    check_classes(cfg, model, {"a": summary(1), "empty": summary(0)})
    with pytest.raises(ValueError, match=f"{key} is 1, but dataset 'b' has 2 classes"):
        check_classes(cfg, model, {"a": summary(1), "b": summary(2)})
