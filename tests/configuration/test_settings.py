"""What no value of a config may be, by its message; nothing is built."""

import pytest
import torch

from bn_detect.configuration.settings import check_settings
from tests.configs.test_configs import load

from ..modeling.small import config

BATCH, EXCHANGE = "MODEL.ROI_BN.BATCH", "MODEL.ROI_BN.EXCHANGE"
VIRTUAL = "MODEL.ROI_BN.VIRTUAL_WORKERS"
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
        ["SOLVER.IMS_PER_BATCH", 7],
        "SOLVER.IMS_PER_BATCH is 7; it must be a positive multiple of the 2 workers",
    ),
    (
        "box",
        ["SOLVER.IMS_PER_BATCH", 0],
        "SOLVER.IMS_PER_BATCH is 0; it must be a positive multiple of the 2 workers",
    ),
    (
        "box",
        ["INPUT.RENDERING.NOISE", 0.1],
        "INPUT.RENDERING.NOISE 0.1: set, but MODEL.META_ARCHITECTURE is 'GeneralizedRCNN'",
    ),
    (
        "box",
        ["MODEL.LEVEL_BN.MOVING_AVERAGE", "shared"],
        "MODEL.LEVEL_BN.MOVING_AVERAGE is 'shared'; it must be one of in_turn, union",
    ),
    (
        "box",
        ["MODEL.LOAD_PROPOSALS", True, "DATASETS.TRAIN", ("a", "b")],
        "DATASETS.PROPOSAL_FILES_TRAIN is (), but DATASETS.TRAIN is ('a', 'b')",
    ),
]


def _check(kind: str, options: list, workers: int = 2) -> None:
    cfg = config(kind)
    cfg.merge_from_list(options)
    check_settings(cfg, workers)


DIGITS = "digits/Base-digits.yaml"
PER_BATCH = "DATALOADER.CLASSES_PER_WORKER_BATCH"
SUBSET = "RandomSubsetTrainingSampler"
CLASSIFIERS = [
    ([PER_BATCH, -1], "CLASSES_PER_WORKER_BATCH is -1; it must be a number of classes"),
    (
        ["INPUT.RENDERING.PHOTOMETRIC_PER", "epoch"],
        "PHOTOMETRIC_PER is 'epoch'; it must be one of image, batch",
    ),
    (
        ["INPUT.RENDERING.PHOTOMETRIC_PER", "batch", "DATALOADER.SAMPLER_TRAIN", SUBSET],
        f"PHOTOMETRIC_PER is 'batch' with DATALOADER.SAMPLER_TRAIN '{SUBSET}'; use one of Train",
    ),
    (["MODEL.CLASSIFIER.NUM_CLASSES", 1], "NUM_CLASSES is 1; it must be at least 2"),
    (
        ["INPUT.CROP.ENABLED", True],
        "INPUT.CROP.TYPE is 'relative_range' with SIZE [0.9, 0.9]; BNImageClassifier takes",
    ),
    (
        ["DATASETS.TEST", ("coco_2017_val",)],
        "DATASETS: 'coco_2017_val' has evaluator_type 'coco'; BNImageClassifier takes",
    ),
    (
        ["MODEL.ROI_BN.BATCH", "images", "MODEL.ROI_BN.IMAGES_PER_GROUP", 65],
        "IMAGES_PER_GROUP is 65, but a worker has 64 images",
    ),
    (["MODEL.ROI_BN.VIRTUAL_WORKERS", 3], "VIRTUAL_WORKERS is 3, which does not divide"),
]


@pytest.mark.parametrize(("options", "message"), CLASSIFIERS, ids=[m[:40] for _, m in CLASSIFIERS])
def test_classifiers(options, message):
    cfg = load(DIGITS)
    cfg.merge_from_list(options)
    with pytest.raises(ValueError) as error:
        check_settings(cfg, 1)
    assert message in str(error.value)


def test_a_detector_has_no_classes_of_images():
    with pytest.raises(ValueError, match="META_ARCHITECTURE is 'GeneralizedRCNN'; only images of"):
        _check("box", [PER_BATCH, 1])


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
