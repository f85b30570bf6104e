"""Find values that no key can have: of another kind than its default, not finite, out of range."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from .keys import default_config

_LARGEST = 1e12  # no key needs more, and float32 and the sizes of arrays have less room

# The smallest and largest value of keys of this package, and of those that it depends on; of a
# list, of each of its numbers. What else Detectron2 refuses is left to the trial (see `trial`).
_RANGES: dict[str, tuple[float, float]] = {
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (1e-3, 1e3),  # fail late: at the first box
    "MODEL.ANCHOR_GENERATOR.SIZES": (1e-3, 1e5),
    "MODEL.ROI_BN.FREEZE_ITER": (-1, _LARGEST),
    "MODEL.ROI_BN.LOG_STATS": (0, _LARGEST),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (1, 1e6),
    "MODEL.ROI_HEADS.NUM_CLASSES": (1, 1e6),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (0, 1),
    "SEED": (-1, 2**31),
    "SOLVER.BASE_LR": (0, 1e6),
    "SOLVER.CHECKPOINT_PERIOD": (1, _LARGEST),
    "SOLVER.IMS_PER_BATCH": (1, 1e6),
    "SOLVER.MAX_ITER": (1, _LARGEST),
    "SOLVER.REFERENCE_WORLD_SIZE": (0, 1e6),
    "TEST.EVAL_PERIOD": (0, _LARGEST),
    "TEST.PRECISE_BN.PERIOD": (0, _LARGEST),
}
_ABOVE_0 = ("MODEL.PIXEL_STD",)
# Lists of texts that are empty by default.
_TEXTS = (
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "DATASETS.TEST",
    "DATASETS.TRAIN",
    "TEST.PRECISE_BN.MODULES",
)
# Lists of lists, one per feature map, that may also be one list for all of them.
_FLAT_TOO = tuple(f"MODEL.ANCHOR_GENERATOR.{key}" for key in ("SIZES", "ASPECT_RATIOS", "ANGLES"))


def check_values(cfg: CfgNode) -> None:
    """Raise ValueError for a value of a kind or size that its key cannot have; names both.

    For every key that is nothing where a value must be, a number that is not finite or huge, and a
    list with entries of another kind than the default's; for some keys a number out of range.
    """
    default = default_config()
    for key, value in flat_keys(cfg):
        usual = value_of(default, key)
        if value is None and usual is not None:
            raise ValueError(f"{key} is empty; its default is {usual!r}")
        _check_kinds(key, value, usual)
        low, high = _RANGES.get(key, (-_LARGEST, _LARGEST))
        for leaf in _leaves(value):
            if not isinstance(leaf, int | float) or isinstance(leaf, bool):
                continue
            if not low <= leaf <= high:  # NaN is not
                raise ValueError(f"{key} is {value!r}; it must be in [{low:.10g}, {high:.10g}]")
            if key in _ABOVE_0 and leaf <= 0:
                raise ValueError(f"{key} is {value!r}; it must be above 0")


def check_keys(pairs: Sequence[Any]) -> None:
    """Raise ValueError for an option of a command where a key of the KEY VALUE pairs must be."""
    for key in pairs[::2]:
        if str(key).startswith("--"):  # argparse takes all that follows the first key for pairs
            option = str(key).partition("=")[0]
            raise ValueError(f"{option} stands after the KEY VALUE pairs; options come before them")


def _check_kinds(key: str, value: Any, usual: Any) -> None:
    if not isinstance(usual, list | tuple):
        return
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key} is {value!r}; it must be a list, as {usual!r}")
    kinds = {str} if key in _TEXTS else {_kind(leaf) for leaf in _leaves(usual)}
    strange = [leaf for leaf in _leaves(value) if kinds and _kind(leaf) not in kinds]
    if strange:
        raise ValueError(
            f"{key} is {value!r}, which holds {strange[0]!r}; its default is {usual!r}"
        )
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


def flat_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a config or nested mappings, after `prefix`, with its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key, or None where the key is missing."""
    for part in key.split("."):
        cfg = cfg.get(part) if isinstance(cfg, CfgNode) else None
    return cfg
