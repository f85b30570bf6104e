"""All config keys of the package, with their defaults, and the objects that they describe."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import fields

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from ..layers import NormalizationBatch

_SETTINGS = "|".join(field.name for field in fields(NormalizationBatch))


def add_bn_detect_config(cfg: CN) -> None:
    """Add the keys of bn_detect to a Detectron2 config, in place.

    Where a head's own NORM is "BN", `MODEL.ROI_BN` says which RoIs are its normalization batch.
    """
    _C = cfg
    _C.MODEL.ROI_BN = CN()
    # The normalization batch: the RoIs whose statistics normalize a RoI during SGD.
    #   "images":   the RoIs of IMAGES_PER_GROUP consecutive images of a worker
    #   "worker":   the RoIs of a worker (per-GPU BN)
    #   "shuffled": a fresh random part of the RoIs of all workers, in as many parts as workers
    #   "global":   the RoIs of all workers (SyncBN)
    _C.MODEL.ROI_BN.BATCH = "worker"
    # Images whose RoIs form one group under "images".
    _C.MODEL.ROI_BN.IMAGES_PER_GROUP = 1
    # Split the images of each process into this many consecutive parts, each of which counts as a
    # worker: 8 x 2 images on one GPU is IMS_PER_BATCH 16 with VIRTUAL_WORKERS 8.
    _C.MODEL.ROI_BN.VIRTUAL_WORKERS = 1
    # How "shuffled" is done: "statistics" reduces the statistics of the groups and leaves the RoIs
    # where they are; "features" moves the RoI features between the workers. Same results.
    _C.MODEL.ROI_BN.EXCHANGE = "statistics"
    # Under "shuffled", let only this many consecutive workers (virtual ones count) shuffle with one
    # another, such as those of one node; 0: all workers.
    _C.MODEL.ROI_BN.SHUFFLE_GROUPS = 0
    # What normalizes at inference: "population" (the moving average, or PreciseBN's estimate) or
    # "minibatch" (the RoIs of TEST_IMAGES_PER_GROUP test images).
    _C.MODEL.ROI_BN.TEST_STATS = "population"
    # Consecutive test images whose RoIs form one group under TEST_STATS "minibatch"; test batches
    # then hold that many images. Above 1, predictions depend on the order of the images.
    _C.MODEL.ROI_BN.TEST_IMAGES_PER_GROUP = 1

    # From this iteration on, normalize with population statistics in training, too; -1: never.
    # With TEST.PRECISE_BN.ENABLED they come from a PreciseBN pass.
    _C.MODEL.ROI_BN.FREEZE_ITER = -1
    # Dotted prefixes of the modules whose BN layers FREEZE_ITER freezes; empty: all.
    _C.MODEL.ROI_BN.FREEZE_MODULES = ["roi_heads"]

    # Iterations between records of one channel's mean in each RoI BN layer, under mini-batch,
    # population and precise statistics (a PreciseBN pass of TEST.PRECISE_BN.NUM_ITER batches, which
    # takes time). They go to TensorBoard, bn_statistics.json and bn_statistics.png; 0: never.
    _C.MODEL.ROI_BN.LOG_STATS = 0

    # PreciseBN, with Detectron2's own keys ENABLED and NUM_ITER (batches per worker).
    # Dotted prefixes of the modules whose BN layers it updates; empty: all.
    _C.TEST.PRECISE_BN.MODULES = []
    # RoIs that the head statistics come from: "train" (sampled as in training, ground truth added)
    # or "test" (the proposals and detections that inference feeds to the heads).
    _C.TEST.PRECISE_BN.ROI_SOURCE = "train"
    # Its normalization batch: the RoIs (a classifier's images) of so many consecutive images of a
    # worker; 0: of all images of a batch, over all workers. Large is right, whatever the batch of
    # training was. Above a worker's images of a step, the batches of a pass hold that many.
    _C.TEST.PRECISE_BN.IMAGES_PER_GROUP = 0
    # Iterations between passes; 0: before each evaluation. Always at the end as well.
    _C.TEST.PRECISE_BN.PERIOD = 0

    # BatchNorm in heads that all feature levels share: in BNRetinaNet, where MODEL.RETINANET.NORM
    # is "BN" or "SyncBN", and in BNRPNHead, where MODEL.RPN.NORM is. Each key is "shared" (by the
    # levels) or "level" (each level has its own).
    _C.MODEL.LEVEL_BN = CN()
    # The statistics that normalize in training.
    _C.MODEL.LEVEL_BN.BATCH = "shared"
    # The statistics that normalize at inference.
    _C.MODEL.LEVEL_BN.POPULATION = "shared"
    # Weight and bias.
    _C.MODEL.LEVEL_BN.AFFINE = "shared"
    # How the moving average of a "shared" population follows batches of each "level": by a step for
    # each level, "in_turn", as one BatchNorm called on level after level does (the authors' code),
    # or by one step with the "union" of the levels, in which every position counts once.
    _C.MODEL.LEVEL_BN.MOVING_AVERAGE = "in_turn"
    # Norm of BNRPNHead; Detectron2's RPN head has none: "", "GN", "BN", "SyncBN", ...
    _C.MODEL.RPN.NORM = ""

    # "SGD", as in Detectron2, or "ADAMW".
    _C.SOLVER.OPTIMIZER = "SGD"
    # Learning rate of the backbone's parameters, relative to BASE_LR.
    _C.SOLVER.BACKBONE_MULTIPLIER = 1.0

    # BNImageClassifier, whose images are to MODEL.ROI_BN what RoIs are to a detector.
    _C.MODEL.CLASSIFIER = CN()
    _C.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    # Its training images: those of a worker (virtual ones count) in a step are of this many
    # classes, drawn anew for each step; 0: of any.
    _C.DATALOADER.CLASSES_PER_WORKER_BATCH = 0

    # Render the images of a classifier as a camera might have taken them: training images anew
    # each time, test images always alike.
    _C.INPUT.RENDERING = CN()
    # Spread of the pose; at 1: rotation +-0.35 radians, scale exp(+-0.3), shear +-0.3, shift +-15%.
    _C.INPUT.RENDERING.AFFINE = 0.0
    # s: contrast times exp(+-s), brightness +-s standard deviations (MODEL.PIXEL_STD).
    _C.INPUT.RENDERING.PHOTOMETRIC = 0.0
    # Standard deviation of Gaussian noise, in those of the pixels.
    _C.INPUT.RENDERING.NOISE = 0.0
    # Contrast and brightness are of each "image", or shared by the training images of a step, which
    # then are those of a "batch".
    _C.INPUT.RENDERING.PHOTOMETRIC_PER = "image"

    # The LazyConfig that this config was made of, which is executed; its overrides, and a hash of
    # what they gave. No YAML file and no KEY VALUE pair can set these.
    _C.MODEL.LAZY_CONFIG = CN()
    _C.MODEL.LAZY_CONFIG.FILE = ""
    _C.MODEL.LAZY_CONFIG.OVERRIDES = []
    _C.MODEL.LAZY_CONFIG.DIGEST = ""

    # Detectron2's keypoint head has no norm: "", "GN", "BN", ... as in the other heads.
    _C.MODEL.ROI_KEYPOINT_HEAD.NORM = ""


def normalization_batch(cfg: CN) -> NormalizationBatch:
    """Return `MODEL.ROI_BN` as the object that the layers take.

    Raises:
        ValueError: a value that is not valid, or two that exclude each other.
    """
    roi_bn = cfg.MODEL.ROI_BN
    with naming_keys():
        return NormalizationBatch(
            batch=roi_bn.BATCH,
            images_per_group=roi_bn.IMAGES_PER_GROUP,
            virtual_workers=roi_bn.VIRTUAL_WORKERS,
            exchange=roi_bn.EXCHANGE,
            shuffle_groups=roi_bn.SHUFFLE_GROUPS,
            test_stats=roi_bn.TEST_STATS,
            test_images_per_group=roi_bn.TEST_IMAGES_PER_GROUP,
            seed=max(cfg.SEED, 0),  # -1: a random start; shuffles are the same on all workers
        )


def batch_for(cfg: CN, norm: str) -> NormalizationBatch | None:
    """Return `MODEL.ROI_BN` as an object for a head whose norm is "BN"; None for other norms."""
    return normalization_batch(cfg) if norm == "BN" else None


@contextlib.contextmanager
def naming_keys() -> Iterator[None]:
    """Let an error of `NormalizationBatch` name keys: MODEL.ROI_BN.BATCH in place of batch."""
    try:
        yield
    except ValueError as error:
        # Values, which are in quotes, stay as they are.
        named = re.sub(rf"(?<!')\b({_SETTINGS})\b", lambda found: found[0].upper(), str(error))
        raise ValueError(f"MODEL.ROI_BN.{named}") from error


def level_choices(cfg: CN) -> dict[str, str]:
    """Return `MODEL.LEVEL_BN` as the keyword arguments that `LevelBatchNorm2d` takes."""
    return {key.lower(): value for key, value in cfg.MODEL.LEVEL_BN.items()}


def default_config() -> CN:
    """Return Detectron2's default config with the keys of bn_detect."""
    cfg = get_cfg()
    add_bn_detect_config(cfg)
    return cfg


def changed_keys(cfg: CN, section: str, but: tuple[str, ...] = ()) -> list[str]:
    """Return "KEY value" for the keys of a section that are not at their defaults.

    Args:
        section: such as "MODEL.ROI_BN".
        but: keys that begin so are left out.
    """
    ours, default = cfg, default_config()
    for part in section.split("."):
        ours, default = ours[part], default[part]
    return [
        f"{section}.{key} {value}"
        for key, value in ours.items()
        if value != default[key] and not key.startswith(but or "-")
    ]
