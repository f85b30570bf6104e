"""Adapters: what the probes need to know of each kind of detector, one file for each.

A new kind of detector is one file, with a subclass of `RoIHead`, and one row of `ADAPTERS`.
"""

import sys
from importlib import import_module

from torch import nn

from .heads import RoIHead

# Module that defines the RoI heads -> module here, and its class. An adapter is imported only where
# the first module is loaded already: without it there is no model of its kind.
ADAPTERS: dict[str, tuple[str, str]] = {
    "detectron2.modeling.roi_heads": ("detectron2_heads", "Detectron2Head"),
    "torchvision.models.detection.roi_heads": ("torchvision_heads", "TorchvisionHead"),
}


def find_head(model: nn.Module) -> RoIHead:
    """Return the box head of a model, of a cascade that of the first stage.

    Raises:
        ValueError: the RoI heads of the model are of a kind that no adapter knows.
    """
    for library, (module, name) in ADAPTERS.items():
        if library in sys.modules:
            adapter: type[RoIHead] = getattr(import_module(f"{__name__}.{module}"), name)
            head = adapter.adapt(model)
            if head is not None:
                return head
    heads = getattr(model, "roi_heads", None)
    raise ValueError(
        f"cannot probe {type(model).__name__} with roi_heads {type(heads).__name__}; known are "
        "Detectron2's StandardROIHeads, CascadeROIHeads, Res5ROIHeads and torchvision's RoIHeads, "
        "and their subclasses"
    )
