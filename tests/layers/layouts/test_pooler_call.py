"""Poolers that are called in other ways, or are none."""

import pytest
import torch
from torch import nn

from bn_detect.layers import RoILayout


class Swapped(nn.Module):
    """Its arguments may come by name, in any order."""

    def forward(self, features: torch.Tensor, boxes: list, sizes: tuple = ()) -> torch.Tensor:
        return features


X, BOXES = torch.zeros(9, 3, 2, 2), [torch.zeros(4, 4), torch.zeros(5, 4)]


@pytest.mark.parametrize(
    "call",
    [
        lambda pooler: pooler(X, BOXES),
        lambda pooler: pooler(X, boxes=BOXES),
        lambda pooler: pooler(features=X, boxes=BOXES),
        lambda pooler: pooler(boxes=BOXES, features=X),
        lambda pooler: pooler(sizes=(1,), boxes=BOXES, features=X),
    ],
)
def test_the_second_argument_is_found_by_name_and_by_place(call):
    pooler, layout = Swapped(), RoILayout()
    layout.watch(pooler)
    call(pooler)
    assert layout.rois_per_image == (4, 5)


# Calls that cannot be read are in tests/faults/test_layers.py.
