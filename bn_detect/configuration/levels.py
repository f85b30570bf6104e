"""Find what cannot work in MODEL.LEVEL_BN and the heads that follow it."""

from detectron2.config import CfgNode, get_cfg

from ..layers.level_batch_norm import LEVEL_CHOICES, MOVING_AVERAGES
from ..modeling import BNRPNHead
from .keys import add_bn_detect_config

_BATCH_NORMS = ("BN", "SyncBN")


def check_levels(cfg: CfgNode) -> None:
    """Raise ValueError, naming key and value, for the first setting that cannot work."""
    default = get_cfg()
    add_bn_detect_config(default)
    for key, value in cfg.MODEL.LEVEL_BN.items():
        known = MOVING_AVERAGES if key == "MOVING_AVERAGE" else LEVEL_CHOICES
        if value not in known:
            raise ValueError(
                f"MODEL.LEVEL_BN.{key} is {value!r}; it must be {' or '.join(map(repr, known))}"
            )
    changed = [
        f"MODEL.LEVEL_BN.{key} {value}"
        for key, value in cfg.MODEL.LEVEL_BN.items()
        if value != default.MODEL.LEVEL_BN[key]
    ]
    rpn = cfg.MODEL.RPN
    if rpn.NORM and BNRPNHead.__name__ != rpn.HEAD_NAME:
        raise ValueError(
            f"MODEL.RPN.NORM is {rpn.NORM!r}, but MODEL.RPN.HEAD_NAME is {rpn.HEAD_NAME!r}, which "
            f"has no norm; use {BNRPNHead.__name__!r}"
        )
    retinanet = cfg.MODEL.META_ARCHITECTURE == "BNRetinaNet"
    norm = cfg.MODEL.RETINANET.NORM if retinanet else rpn.NORM
    if changed and norm not in _BATCH_NORMS:
        raise ValueError(
            f"{', '.join(changed)}: set, but no head has BatchNorm over the feature levels; use "
            "MODEL.META_ARCHITECTURE 'BNRetinaNet' with MODEL.RETINANET.NORM 'SyncBN', or "
            "MODEL.RPN.HEAD_NAME 'BNRPNHead' with MODEL.RPN.NORM 'SyncBN'"
        )
