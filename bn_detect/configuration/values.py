"""Find values that no key can have: of another kind than its default, not finite, out of range."""

from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode

from .keys import default_config

LARGEST = 10**5  # of an image's side, in pixels
_FINITE = (-1e38, 1e38)  # in float32

# Of keys in use everywhere: the smallest and largest value; of a list, of each of its numbers.
_RANGES: dict[str, tuple[float, float]] = {
    "SOLVER.BASE_LR": (0, 1e6),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, 1e6),
    "SOLVER.WARMUP_ITERS": (0, 10**12),
    "SOLVER.WARMUP_FACTOR": (0, 1),
    "SOLVER.GAMMA": (0, 1e6),
    "SOLVER.STEPS": (0, 10**12),
    "SOLVER.MAX_ITER": (1, 10**12),
    "SOLVER.CHECKPOINT_PERIOD": (1, 10**12),
    "SOLVER.IMS_PER_BATCH": (1, 10**6),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (0, 1e9),
    "SOLVER.REFERENCE_WORLD_SIZE": (0, 10**6),
    "DATALOADER.NUM_WORKERS": (0, 1000),
    "INPUT.MIN_SIZE_TRAIN": (0, LARGEST),
    "INPUT.MIN_SIZE_TEST": (0, LARGEST),
    "INPUT.MAX_SIZE_TRAIN": (1, 10**12),
    "INPUT.MAX_SIZE_TEST": (1, 10**12),
    "INPUT.RENDERING.AFFINE": (0, 10),
    "INPUT.RENDERING.PHOTOMETRIC": (0, 10),
    "INPUT.RENDERING.NOISE": (0, 10),
    "MODEL.ANCHOR_GENERATOR.SIZES": (1e-3, LARGEST),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (1e-3, 1e3),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": (1, 10**9),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (1, 10**9),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": (1, 10**9),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (1, 10**9),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": (1, 10**9),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (1, 10**6),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (0, 1),
    "MODEL.ROI_HEADS.NUM_CLASSES": (1, 10**6),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": (1, 1000),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": (1, 1000),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": (0, 100),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0, 1000),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (0, 1000),
    "TEST.DETECTIONS_PER_IMAGE": (-1, 10**9),
    "MODEL.ROI_BN.FREEZE_ITER": (-1, 10**12),
    "MODEL.ROI_BN.LOG_STATS": (0, 10**12),
    "TEST.EVAL_PERIOD": (0, 10**12),
    "TEST.PRECISE_BN.PERIOD": (0, 10**12),
    "TEST.PRECISE_BN.IMAGES_PER_GROUP": (0, 10**6),
    "SEED": (-1, 2**31),
}
_ABOVE_0 = ("MODEL.PIXEL_STD",)
# Lists of lists, one per feature map, that may also be one list for all of them.
_FLAT_TOO = tuple(f"MODEL.ANCHOR_GENERATOR.{key}" for key in ("SIZES", "ASPECT_RATIOS", "ANGLES"))


def check_values(cfg: CfgNode) -> None:
    """Raise ValueError for a value of a kind or size that its key cannot have; names both.

    Every key: nothing where a value must be, a number that is not finite, a list with entries of
    another kind than the default's. Some keys: a range.
    """
    default = default_config()
    for key, value in flat_keys(cfg):
        usual = value_of(default, key)
        if value is None and usual is not None:
            raise ValueError(f"{key} is empty; its default is {usual!r}")
        _check_kinds(key, value, usual)
        low, high = _RANGES.get(key, _FINITE)
        for leaf in _leaves(value):
            if not isinstance(leaf, int | float) or isinstance(leaf, bool):
                continue
            if not low <= leaf <= high:  # NaN is not
                span = f"in [{low:g}, {high:g}]" if key in _RANGES else "a finite number"
                raise ValueError(f"{key} is {value!r}; it must be {span}")
            if key in _ABOVE_0 and leaf <= 0:
                raise ValueError(f"{key} is {value!r}; it must be above 0")


def _check_kinds(key: str, value: Any, usual: Any) -> None:
    if not isinstance(usual, list | tuple):
        return
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key} is {value!r}; it must be a list, as {usual!r}")
    kinds = {_kind(leaf) for leaf in _leaves(usual)}
    strange = [leaf for leaf in _leaves(value) if kinds and _kind(leaf) not in kinds]
    if strange:
        raise ValueError(f"{key} is {value!r}, which holds {strange[0]!r}; a default is {usual!r}")
    nested = [part for part in value if isinstance(part, list | tuple)]
    flat = len(nested) == 0 and (key in _FLAT_TOO or not _is_nested(usual))
    as_usual = len(nested) == len(value) and _is_nested(usual) and all(nested)
    if usual and value and not (flat or as_usual):
        raise ValueError(f"{key} is {value!r}; it must be nested as {usual!r}, no part empty")


def _kind(leaf: Any) -> type:
    return float if isinstance(leaf, int | float) and not isinstance(leaf, bool) else type(leaf)


def _is_nested(value: Sequence[Any]) -> bool:
    return any(isinstance(part, list | tuple) for part in value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def flat_keys(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a config, after `prefix`, with its value."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key, or None where the key is missing."""
    for part in key.split("."):
        cfg = cfg.get(part) if isinstance(cfg, CfgNode) else None
    return cfg
