"""Compare a run's config with the one that it was started with, when it is resumed."""

from typing import Any

import yaml
from detectron2.config import CfgNode

from .values import flat_keys

# What a resumed run keeps from its checkpoint, whatever its config says (the optimizer's settings,
# the seed), or what would give the images or the normalization batch of two runs in one. What ends
# in a dot stands for all keys of that section.
FIXED = (
    "SEED",
    "DATASETS.TRAIN",
    "DATALOADER.ASPECT_RATIO_GROUPING",
    "DATALOADER.CLASSES_PER_WORKER_BATCH",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    "DATALOADER.SAMPLER_TRAIN",
    "MODEL.LEVEL_BN.",
    "MODEL.ROI_BN.BATCH",
    "MODEL.ROI_BN.IMAGES_PER_GROUP",
    "MODEL.ROI_BN.SHUFFLE_GROUPS",
    "MODEL.ROI_BN.VIRTUAL_WORKERS",
    "SOLVER.BACKBONE_MULTIPLIER",
    "SOLVER.BASE_LR",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.OPTIMIZER",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.WEIGHT_DECAY_NORM",
)
# What does not change the training.
FREE = (
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.TEST",
    "MODEL.DEVICE",
    "MODEL.ROI_BN.EXCHANGE",
    "MODEL.ROI_BN.LOG_STATS",
    "MODEL.ROI_BN.TEST_IMAGES_PER_GROUP",
    "MODEL.ROI_BN.TEST_STATS",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.",
    "VERSION",
    "VIS_PERIOD",
)


LAZY = "MODEL.LAZY_CONFIG."


def changes(before: str, cfg: CfgNode) -> str:
    """Return "KEY was A, is B" for each setting of the training that changes on the way, or "".

    Args:
        before: the YAML of the config that the run was started with. A key that one of the two
            lacks, as between versions of Detectron2, is left out.

    Raises:
        ValueError: one of them cannot change (`FIXED`, or the model or optimizer of a LazyConfig);
            names all of these.
    """
    old, new = _values(CfgNode(yaml.safe_load(before))), _values(cfg)
    said: dict[bool, list[str]] = {True: [], False: []}
    for key, value in new.items():
        if key in old and old[key] != value and not _is_among(FREE, key):
            said[_is_among(FIXED, key)].append(f"{key} was {old[key]!r}, is {value!r}")
    kept = [values.get(LAZY + "DIGEST", "").partition("-")[0] for values in (old, new)]
    if kept[0] != kept[1]:
        overrides = [values.get(LAZY + "OVERRIDES") for values in (old, new)]
        said[True].append(
            f"model or optimizer of the LazyConfig {new[LAZY + 'FILE']} is another one (overrides "
            f"were {overrides[0]}, are {overrides[1]})"
        )
    if said[True]:
        raise ValueError(
            f"{'; '.join(said[True])}. These cannot change in a run that is resumed; give their "
            "old values, or start another run in another OUTPUT_DIR"
        )
    return "; ".join(said[False])


def _is_among(keys: tuple[str, ...], key: str) -> bool:
    return any(key.startswith(k) if k.endswith(".") else key == k for k in keys)


def _values(cfg: CfgNode) -> dict[str, Any]:
    plain = yaml.safe_load(cfg.dump())  # lists for tuples, as in the file
    return dict(flat_keys(CfgNode(plain)))
