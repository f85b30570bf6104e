"""Every config loads, is valid and builds; Tables 5 and 6 are what the paper says."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from bn_detect import add_bn_detect_config
from bn_detect.configuration.model import check_model
from bn_detect.configuration.settings import check_settings
from bn_detect.layers import LevelBatchNorm2d, RoIBatchNorm2d

CONFIGS = Path(__file__).parents[2] / "configs"
EVERY = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
FILES = [path for path in EVERY if path.parts[0] != "studies"]
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
    "MODEL.ROI_HEADS.NAME": "BNStandardROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_BOX_HEAD.NAME": "BNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.NAME": "BNMaskConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    # Detectron2's Base-RCNN-FPN.
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
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
    "bn_1image_minibatch": {"BATCH": "images", "TEST_STATS": "minibatch"},
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
    "gn": {},
}
NORMS = {"nonorm": "", "gn": "GN"}  # others are BN

# The numbers of GPUs that each row's comment speaks of, with VIRTUAL_WORKERS there, and the images
# of one normalization batch (None: all).
GPUS = {
    "bn_1image": ([(16, 1), (8, 1), (4, 1), (2, 1), (1, 1)], 1),
    "bn_1image_minibatch": ([(16, 1), (8, 1), (4, 1), (2, 1), (1, 1)], 1),
    "bn_2images": ([(8, 1), (4, 1), (2, 1), (1, 1)], 2),
    "bn_2images_minibatch": ([(8, 1), (4, 1), (2, 1), (1, 1)], 2),
    "shuffled_1image": ([(16, 1), (8, 2), (1, 16)], 1),
    "shuffled_2images": ([(8, 1), (1, 8)], 2),
    "global": ([(16, 1), (8, 1), (4, 1), (2, 1), (1, 1)], None),
    "nonorm": ([(8, 1)], None),
    "gn": ([(8, 1)], None),
}
# Batch, population and affine of the rows of Table 5, "d" is "level"; the last row is ours.
TABLE5 = {1: "sss", 2: "sds", 3: "dss", 4: "dds", 5: "dsd", 6: "ddd", None: "ssd"}
# RetinaNet's settings where they are not Mask R-CNN's.
RETINANET = {
    "MODEL.META_ARCHITECTURE": "BNRetinaNet",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.RETINANET.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "MODEL.RETINANET.NORM": "SyncBN",
    "MODEL.RETINANET.NUM_CONVS": 4,
    "MODEL.RETINANET.NUM_CLASSES": 80,
    "MODEL.RETINANET.PRIOR_PROB": 0.01,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.25,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 2.0,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
    "MODEL.RETINANET.IOU_THRESHOLDS": [0.4, 0.5],
    "MODEL.RETINANET.IOU_LABELS": [0, -1, 1],
    "MODEL.ANCHOR_GENERATOR.SIZES": [
        [size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in (32, 64, 128, 256, 512)
    ],
    "SOLVER.BASE_LR": 0.01,
}
BOTH = ("WEIGHTS", "DEPTH", "RESNETS.NORM", "FREEZE_AT", "ASPECT", "SOLVER", "INPUT", "DATASETS")

# Below the base the rows set nothing else.
DELTA_KEYS = {"MODEL.MASK_ON", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM", "OUTPUT_DIR"}


def load(path: Path | str) -> CfgNode:
    cfg = get_cfg()
    add_bn_detect_config(cfg)
    cfg.merge_from_file(str(CONFIGS / path))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def flat(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key."""
    values = {}
    for key, value in cfg.items():
        nested = isinstance(value, CfgNode)
        values |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values


@pytest.mark.parametrize("path", FILES, ids=str)
def test_loads_validates_and_builds(path):
    cfg = load(path)
    workers = {"neon": 2, "digits": 1, "COCO-Detection-mini": 1, "real-images": 4}
    check_settings(cfg, workers.get(path.parts[0], 8))
    cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg)
    check_model(cfg, model, trains=True, precise=cfg.TEST.PRECISE_BN.ENABLED)
    kind = LevelBatchNorm2d if "retinanet" in path.name.lower() else RoIBatchNorm2d
    layers = [m for m in model.modules() if isinstance(m, kind)]
    assert bool(layers) == (not path.stem.endswith(("_nonorm", "_gn")))
    if not layers:
        return
    if kind is RoIBatchNorm2d:
        assert {m.layout.settings.batch for m in layers} <= {cfg.MODEL.ROI_BN.BATCH}
    else:
        assert len(layers) == 2 * cfg.MODEL.RETINANET.NUM_CONVS


@pytest.mark.parametrize("path", FILES, ids=str)
def test_is_a_short_delta_over_a_base_in_this_folder(path):
    lines = (CONFIGS / path).read_text().splitlines()
    bases = [yaml.safe_load(line)["_BASE_"] for line in lines if line.startswith("_BASE_")]
    for base in bases:
        assert not Path(base).is_absolute()
        assert CONFIGS in (CONFIGS / path).parent.joinpath(base).resolve().parents
        assert len(lines) <= (16 if "InstanceSegmentation" in path.parts[0] else 24)


def test_each_trains_into_a_folder_of_its_own():
    folders = [load(path).OUTPUT_DIR for path in FILES if "Base" not in path.name]
    assert len(set(folders)) == len(folders) and get_cfg().OUTPUT_DIR not in folders


@pytest.mark.parametrize("row", ROWS)
def test_table6(row):
    cfg = load(TABLE6.format(row))
    values = flat(cfg)
    assert {key: values[key] for key in PAPER} == PAPER
    norm = NORMS.get(row, "BN")
    assert cfg.MODEL.ROI_BOX_HEAD.NORM == cfg.MODEL.ROI_MASK_HEAD.NORM == norm

    default = get_cfg()
    add_bn_detect_config(default)
    assert dict(cfg.MODEL.ROI_BN) == {**default.MODEL.ROI_BN, **ROWS[row]}

    base = flat(load("Base-RCNN-FPN-BN.yaml"))
    changed = {key for key, value in values.items() if value != base[key]}
    assert {key for key in changed if not key.startswith("MODEL.ROI_BN.")} <= DELTA_KEYS


@pytest.mark.parametrize("row", ROWS)
def test_table6_on_other_numbers_of_gpus(row):
    cfg = load(TABLE6.format(row))
    settings, images = GPUS[row]
    assert (8, cfg.MODEL.ROI_BN.VIRTUAL_WORKERS) in settings  # as it stands: for 8 GPUs
    for gpus, virtual_workers in settings:
        cfg.MODEL.ROI_BN.VIRTUAL_WORKERS = virtual_workers
        check_settings(cfg, gpus)
        of_a_worker = cfg.SOLVER.IMS_PER_BATCH // (gpus * virtual_workers)
        if cfg.MODEL.ROI_BN.BATCH == "images":
            assert images == cfg.MODEL.ROI_BN.IMAGES_PER_GROUP
            assert of_a_worker % images == 0
        elif images:
            assert of_a_worker == images


@pytest.mark.parametrize(("row", "letters"), TABLE5.items())
def test_table5(row, letters):
    words = [{"s": "shared", "d": "level"}[letter] for letter in letters]
    path = f"COCO-Detection/retinanet_R_50_FPN_3x_{'_'.join(words)}.yaml"
    comment = (CONFIGS / path).read_text().splitlines()[0]
    assert f"Row {row}:" in comment if row else "Not in the paper's table" in comment
    cfg = load(path)
    check_retinanet(cfg, {f"MODEL.LEVEL_BN.{k}" for k in cfg.MODEL.LEVEL_BN})
    assert list(cfg.MODEL.LEVEL_BN.values()) == [*words, "in_turn"]  # as in the authors' code
    small = load(f"neon/retinanet_lean_FPN_{'_'.join(words)}.yaml")
    assert dict(small.MODEL.LEVEL_BN) == dict(cfg.MODEL.LEVEL_BN)


@pytest.mark.parametrize("row", NORMS)
def test_rows_beside_table5(row):
    cfg = load(f"COCO-Detection/retinanet_R_50_FPN_3x_{row}.yaml")
    check_retinanet(cfg, {"MODEL.RETINANET.NORM"})
    assert NORMS[row] == cfg.MODEL.RETINANET.NORM
    assert NORMS[row] == load(f"neon/retinanet_lean_FPN_{row}.yaml").MODEL.RETINANET.NORM


def check_retinanet(cfg: CfgNode, changes: set[str]) -> None:
    """The paper's settings but for `changes`."""
    values = flat(cfg)
    expected = {key: value for key, value in PAPER.items() if any(part in key for part in BOTH)}
    expected |= RETINANET
    assert all(values[key] == expected[key] for key in expected.keys() - changes)
    base = flat(load("Base-RetinaNet-BN.yaml"))
    changed = {key for key, value in values.items() if value != base[key]}
    assert changed <= changes | {"OUTPUT_DIR"}


def test_schedules_on_imagenet():
    """100 epochs; the rate falls at 30, 60 and 80, where FrozenBN begins; about 10,000 images are
    enough for PreciseBN, in batches of at least 100."""
    for path in (p for p in FILES if p.parts[0] == "ImageNet"):
        cfg = load(path)
        solver, precise = cfg.SOLVER, cfg.TEST.PRECISE_BN
        epoch = 1281167 / solver.IMS_PER_BATCH
        assert pytest.approx(0.1 * solver.IMS_PER_BATCH / 256) == solver.BASE_LR
        ends = [*solver.STEPS, solver.MAX_ITER]
        assert ends == pytest.approx([30 * epoch, 60 * epoch, 80 * epoch, 100 * epoch], abs=1)
        assert precise.ENABLED and precise.IMAGES_PER_GROUP == 0
        assert 10_000 <= precise.NUM_ITER * solver.IMS_PER_BATCH < 20_000
    study = yaml.safe_load((CONFIGS / "studies/imagenet_sizes.yaml").read_text())
    for arm in study["arms"]:
        start, options = arm.get("starts_from"), arm.get("options", {})
        if start is not None:
            first = next(a for a in study["arms"] if a["name"] == start["arm"]).get("options", {})
            cfg = load("ImageNet/Base-R-50.yaml")
            cfg.merge_from_list([x for item in first.items() for x in item])
            steps = cfg.SOLVER
            assert steps.STEPS[-1] == start["iteration"] == options["MODEL.ROI_BN.FREEZE_ITER"]
            assert start["iteration"] % steps.CHECKPOINT_PERIOD == 0
            epoch = 1281167 / steps.IMS_PER_BATCH
            assert pytest.approx([30 * epoch, 60 * epoch, 80 * epoch], abs=1) == steps.STEPS


def test_mini_is_table6_smaller():
    base = flat(load("Base-RCNN-FPN-BN.yaml"))
    mini = flat(load("COCO-Detection-mini/Base-RCNN-FPN-mini.yaml"))
    changed = {key for key, value in mini.items() if value != base[key]}
    assert changed == {
        "MODEL.ROI_BN.VIRTUAL_WORKERS",
        "DATALOADER.NUM_WORKERS",
        "INPUT.MAX_SIZE_TEST",
        "INPUT.MAX_SIZE_TRAIN",
        "INPUT.MIN_SIZE_TEST",
        "INPUT.MIN_SIZE_TRAIN",
        "SOLVER.AMP.ENABLED",
        "SOLVER.CHECKPOINT_PERIOD",
        "SOLVER.MAX_ITER",
        "SOLVER.STEPS",
    }
