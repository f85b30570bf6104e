"""Find what cannot work in the values of a config, before anything is built."""

import os
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

from ..data import CLASSIFICATION
from ..data.rendering import PER
from ..layers.level_batch_norm import LEVEL_CHOICES, MOVING_AVERAGES
from ..modeling.image_classifier import BNImageClassifier
from ..population.precise_bn import ROI_SOURCES
from .keys import changed_keys, naming_keys, normalization_batch
from .values import value_of

_CHOICES: dict[str, tuple[str, ...]] = {
    "INPUT.RENDERING.PHOTOMETRIC_PER": PER,
    "MODEL.LEVEL_BN.AFFINE": LEVEL_CHOICES,
    "MODEL.LEVEL_BN.BATCH": LEVEL_CHOICES,
    "MODEL.LEVEL_BN.MOVING_AVERAGE": MOVING_AVERAGES,
    "MODEL.LEVEL_BN.POPULATION": LEVEL_CHOICES,
    "SOLVER.OPTIMIZER": ("SGD", "ADAMW"),
    "TEST.PRECISE_BN.ROI_SOURCE": ROI_SOURCES,
}
RESUMABLE_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")
SAMPLERS = (
    *RESUMABLE_SAMPLERS,
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)


def is_classifier(cfg: CfgNode) -> bool:
    """Return whether the config's model is a `BNImageClassifier`, or of a class derived from it."""
    name = cfg.MODEL.META_ARCHITECTURE
    kind = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(kind, type) and issubclass(kind, BNImageClassifier)


def check_settings(cfg: CfgNode, world_size: int, *, trains: bool = True) -> None:
    """Raise ValueError, naming key and value, for the first setting that cannot work.

    Args:
        cfg: scaled to the world size.
        world_size: workers over all machines.
        trains: whether training images are used, in batches of SOLVER.IMS_PER_BATCH.
    """
    settings = normalization_batch(cfg)
    _check_device(cfg.MODEL.DEVICE)
    if trains:
        _check_images(cfg, world_size)
        with naming_keys():
            settings.spans(world_size)
    of_training = {"DATALOADER.SAMPLER_TRAIN": SAMPLERS} if trains else {}
    for key, known in (_CHOICES | of_training).items():
        if (value := value_of(cfg, key)) not in known:
            raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(known)}")
    _check_population(cfg)
    if cfg.TEST.AUG.ENABLED:
        raise ValueError(
            "TEST.AUG.ENABLED is True, but test-time augmentation is not done here; set it to False"
        )
    _check_proposals(cfg)
    _check_rendering(cfg)
    _check_classifier(cfg)


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
    num_iter = cfg.TEST.PRECISE_BN.NUM_ITER
    if num_iter < 1:  # LOG_STATS, --eval-stats and studies need it too
        raise ValueError(f"TEST.PRECISE_BN.NUM_ITER is {num_iter}; it must be at least 1")
    if cfg.MODEL.ROI_BN.FREEZE_ITER >= 0 and cfg.MODEL.ROI_BN.TEST_STATS == "minibatch":
        raise ValueError(
            f"MODEL.ROI_BN.FREEZE_ITER is {cfg.MODEL.ROI_BN.FREEZE_ITER} with TEST_STATS "
            "'minibatch': a head trained with frozen statistics is evaluated with them; use "
            "TEST_STATS 'population', or FREEZE_ITER -1"
        )


def _check_proposals(cfg: CfgNode) -> None:
    for split in ("TRAIN", "TEST") if cfg.MODEL.LOAD_PROPOSALS else ():
        files, names = cfg.DATASETS[f"PROPOSAL_FILES_{split}"], cfg.DATASETS[split]
        if len(files) != len(names):
            raise ValueError(
                f"DATASETS.PROPOSAL_FILES_{split} is {files}, but DATASETS.{split} is {names}; "
                "with MODEL.LOAD_PROPOSALS each dataset needs its file"
            )


def _check_rendering(cfg: CfgNode) -> None:
    per, sampler = cfg.INPUT.RENDERING.PHOTOMETRIC_PER, cfg.DATALOADER.SAMPLER_TRAIN
    if changed := changed_keys(cfg, "INPUT.RENDERING"):
        if not is_classifier(cfg):
            raise ValueError(
                f"{', '.join(changed)}: set, but MODEL.META_ARCHITECTURE is "
                f"{cfg.MODEL.META_ARCHITECTURE!r}; only images of 'BNImageClassifier' are rendered"
            )
        if per == "batch" and sampler not in RESUMABLE_SAMPLERS:
            raise ValueError(
                f"INPUT.RENDERING.PHOTOMETRIC_PER is 'batch' with DATALOADER.SAMPLER_TRAIN "
                f"{sampler!r}; use one of {', '.join(RESUMABLE_SAMPLERS)}"
            )


def _check_classifier(cfg: CfgNode) -> None:
    classes = cfg.DATALOADER.CLASSES_PER_WORKER_BATCH
    if classes < 0:
        raise ValueError(
            f"DATALOADER.CLASSES_PER_WORKER_BATCH is {classes}; it must be a number of classes, or "
            "0 for images of any"
        )
    if not is_classifier(cfg):
        if classes:
            raise ValueError(
                f"DATALOADER.CLASSES_PER_WORKER_BATCH is {classes}, but MODEL.META_ARCHITECTURE "
                f"is {cfg.MODEL.META_ARCHITECTURE!r}; only images of 'BNImageClassifier' have a "
                "class"
            )
        return
    if cfg.MODEL.CLASSIFIER.NUM_CLASSES < 2:
        raise ValueError(
            f"MODEL.CLASSIFIER.NUM_CLASSES is {cfg.MODEL.CLASSIFIER.NUM_CLASSES}; it must be at "
            "least 2"
        )
    crop = cfg.INPUT.CROP
    if crop.ENABLED and (crop.TYPE != "absolute" or min(crop.SIZE) < 1):
        raise ValueError(
            f"INPUT.CROP.TYPE is {crop.TYPE!r} with SIZE {list(crop.SIZE)}; BNImageClassifier "
            "takes 'absolute' with a size in pixels, such as [224, 224]"
        )
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        kind = MetadataCatalog.get(name).get("evaluator_type") if name in DatasetCatalog else None
        if name in DatasetCatalog and kind != CLASSIFICATION:
            raise ValueError(
                f"DATASETS: {name!r} has evaluator_type {kind!r}; BNImageClassifier takes "
                f"{CLASSIFICATION!r}, whose images have a class each"
            )


def check_weights(cfg: CfgNode, *, resume: bool) -> None:
    """Raise ValueError where MODEL.WEIGHTS is a local file that is not there; URLs are not tried.

    Args:
        resume: whether the run goes on from the checkpoint in OUTPUT_DIR; where there is one, no
            other is read.
    """
    if resume and PathManager.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return
    url = urlparse(cfg.MODEL.WEIGHTS)
    path = url._replace(query="").geturl()  # "?matching_heuristics=True" is for Detectron2
    if path and not url.scheme and not PathManager.isfile(path):
        raise ValueError(f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}, but there is no such file")
