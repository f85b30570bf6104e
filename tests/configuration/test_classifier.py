"""What a user gets wrong in the config of an image classifier, by its message."""

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from bn_detect import add_bn_detect_config
from bn_detect.configuration.classifier import check_classes
from bn_detect.configuration.validation import validate_config
from tests.configs.test_configs import CONFIGS, load

DIGITS = "digits/Base-digits.yaml"
PER_BATCH = "DATALOADER.CLASSES_PER_WORKER_BATCH"
ERRORS = [
    ([PER_BATCH, -1], "CLASSES_PER_WORKER_BATCH is -1; it must be a number of classes"),
    (
        ["MODEL.RESNETS.NORM", "GN", "MODEL.ROI_BN.BATCH", "images"],
        "MODEL.ROI_BN.BATCH images: set, but MODEL.RESNETS.NORM is 'GN'",
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


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=[m[:40] for _, m in ERRORS])
def test_errors(options, message):
    cfg = load(DIGITS)
    cfg.merge_from_list(options)
    with pytest.raises(ValueError) as error:
        validate_config(cfg, 1)
    assert message in str(error.value)


def test_a_detector_has_no_classes_of_images():
    cfg = get_cfg()
    add_bn_detect_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "leaky-shapes/faster_rcnn_small.yaml"))
    cfg.DATALOADER.CLASSES_PER_WORKER_BATCH = 1
    with pytest.raises(ValueError, match="META_ARCHITECTURE is 'GeneralizedRCNN'; only images of"):
        validate_config(cfg, 1)


def test_the_number_of_classes_is_the_datasets(monkeypatch):
    cfg = load(DIGITS)
    metadata = MetadataCatalog.get("digits_train")
    monkeypatch.setattr(metadata, "classes", [str(i) for i in range(10)], raising=False)
    check_classes(cfg)
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 12
    with pytest.raises(ValueError, match="NUM_CLASSES is 12, but dataset 'digits_train' has 10"):
        check_classes(cfg)
