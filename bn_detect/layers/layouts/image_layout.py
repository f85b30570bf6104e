"""The layout of a network that sees whole images: an image is what a RoI is in a RoI head."""

from dataclasses import replace

import torch

from ..batches import RoIFacts
from .forward_clock import Forward
from .roi_layout import RoILayout


class ImageLayout(RoILayout):
    """The `RoILayout` of a network that sees images: every row of a batch is an image of its own.

    Nothing needs to be recorded: a layer's input says how many images there are.
    """

    def _facts(self, num_rois: int, device: torch.device, forward: Forward) -> RoIFacts:
        facts = super()._facts(num_rois, device, forward)
        return replace(facts, recorded=(1,) * num_rois)
