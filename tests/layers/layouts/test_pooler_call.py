"""Poolers that are called in other ways, or are none."""

import pytest
import torch
from torch import nn

from bn_detect.layers import RoILayout, convert_roi_batchnorm


class Swapped(nn.Module):
    """Its arguments may come by name, in any order."""

    def forward(self, features: torch.Tensor, boxes: list, sizes: tuple = ()) -> torch.Tensor:
        return features


class OneArgument(nn.Module):
    def forward(self, boxes: list) -> torch.Tensor:
        return torch.zeros(sum(map(len, boxes)), 3, 2, 2)


class Anything(nn.Module):
    def forward(self, *args, **kwargs) -> torch.Tensor:
        return torch.zeros(1)


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


@pytest.mark.parametrize(
    ("pooler", "call", "named"),
    [
        (OneArgument(), lambda pooler: pooler(BOXES), ["OneArgument", "missing"]),
        (OneArgument(), lambda pooler: pooler(boxes=BOXES), ["OneArgument", "missing"]),
        (Anything(), lambda pooler: pooler(x=X, boxes=BOXES), ["Anything", "missing"]),
        (Swapped(), lambda pooler: pooler(BOXES, X), ["Swapped", "Tensor"]),
        (Swapped(), lambda pooler: pooler(X, [1, 2]), ["Swapped", "list"]),
    ],
)
def test_what_cannot_be_read_is_named_with_the_remedy(pooler, call, named):
    convert_roi_batchnorm(nn.BatchNorm2d(3), "images", pooler=pooler, name="my head")
    with pytest.raises(ValueError) as error:
        call(pooler)
    for part in [*named, "my head", "layout.record(rois_per_image)"]:
        assert part in str(error.value)
