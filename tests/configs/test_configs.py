"""Every config loads, is valid and builds; Table 6 is what the paper says."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from bn_detect import add_bn_detect_config
from bn_detect.engine.validation import validate_config
from bn_detect.layers import RoIBatchNorm2d

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
TABLE6 = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x_{}.yaml"

# The settings behind Table 6, as the authors' published configs have them.
PAPER = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.MASK_ON": True,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.STEPS": (210000, 250000),
    "SOLVER.MAX_ITER": 270000,
    "SOLVER.GAMMA": 0.1,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "TEST.PRECISE_BN.ENABLED": False,  # they evaluate with the moving average
}
ROWS = {
    "bn_1image": {"BATCH": "images", "IMAGES_PER_GROUP": 1},
    "bn_2images": {"BATCH": "images", "IMAGES_PER_GROUP": 2},
    "bn_2images_minibatch": {
        "BATCH": "images",
        "IMAGES_PER_GROUP": 2,
        "TEST_STATS": "minibatch",
    },
    "shuffled_1image": {"BATCH": "shuffled", "VIRTUAL_WORKERS": 2},
    "shuffled_2images": {"BATCH": "shuffled"},
    "global": {"BATCH": "global"},
    "nonorm": {},
}


def load(path: Path | str) -> CfgNode:
    cfg = get_cfg()
    add_bn_detect_config(cfg)
    cfg.merge_from_file(str(CONFIGS / path))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def value(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("path", FILES, ids=str)
def test_loads_validates_and_builds(path):
    cfg = load(path)
    workers = 2 if path.parts[0] == "neon" else 8
    validate_config(cfg, workers)
    cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg)
    layers = [m for m in model.modules() if isinstance(m, RoIBatchNorm2d)]
    assert bool(layers) == ("nonorm" not in path.name)
    assert {m.layout.settings.batch for m in layers} <= {cfg.MODEL.ROI_BN.BATCH}


def test_deltas_are_short():
    for path in FILES:
        text = (CONFIGS / path).read_text()
        assert "_BASE_" not in text or len(text.splitlines()) <= 24, path


@pytest.mark.parametrize("row", ROWS)
def test_table6(row):
    cfg = load(TABLE6.format(row))
    different = {key: value(cfg, key) for key, want in PAPER.items() if value(cfg, key) != want}
    assert different == {}
    norm = "" if row == "nonorm" else "BN"
    assert cfg.MODEL.ROI_BOX_HEAD.NORM == cfg.MODEL.ROI_MASK_HEAD.NORM == norm

    default = get_cfg()
    add_bn_detect_config(default)
    assert dict(cfg.MODEL.ROI_BN) == {**default.MODEL.ROI_BN, **ROWS[row]}
    workers = {"shuffled_1image": 8, "shuffled_2images": 8}.get(row, 16)
    if row in ("shuffled_1image", "shuffled_2images"):
        images = cfg.SOLVER.IMS_PER_BATCH // (workers * cfg.MODEL.ROI_BN.VIRTUAL_WORKERS)
        assert images == (1 if row == "shuffled_1image" else 2)
