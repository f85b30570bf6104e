"""`use_statistics`: layers, hooks and moved features follow it, and go back."""

import pytest
import torch
from torch import nn

from bn_detect.layers import (
    NormalizationBatch,
    RoIBatchNorm2d,
    RoILayout,
    convert_batchnorm,
    use_layout,
)
from bn_detect.layers.convert import layouts_of
from bn_detect.layers.statistics import STATISTICS, use_statistics
from bn_detect.layers.watching import WatchesRoIs, apply_to_rois

CPU = torch.device("cpu")


class Pooler(nn.Module):
    def forward(self, features: torch.Tensor, boxes: list) -> torch.Tensor:
        return features


class Head(WatchesRoIs):
    """A pooler, a BN layer, and a way to move the RoIs."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.pooler, self.roi_layout = Pooler(), RoILayout(NormalizationBatch(**settings))
        self.layers = use_layout(nn.Sequential(nn.BatchNorm2d(2)), self.roi_layout)
        self.watch_rois(self.roi_layout, self.pooler)

    def forward(self, x: torch.Tensor, boxes: list) -> torch.Tensor:
        x = self.pooler(x, boxes)
        return apply_to_rois(self.roi_layout, self.layers, x, training=self.training)


BOXES = [range(3), range(1)]


def test_minibatch_and_population_at_inference():
    head = Head(batch="shuffled").eval()
    x = torch.randn(4, 2, 3, 3)
    population = head(x, BOXES)
    assert not head.pooler._forward_pre_hooks
    with use_statistics(head, "minibatch"):
        assert len(head.pooler._forward_pre_hooks) == 1
        each = [
            torch.nn.functional.batch_norm(part, None, None, training=True)
            for part in x.split([3, 1])
        ]
        torch.testing.assert_close(head(x, BOXES), torch.cat(each))
        with use_statistics(head, test_images_per_group=2):
            both = torch.nn.functional.batch_norm(x, None, None, training=True)
            torch.testing.assert_close(head(x, BOXES), both)
        with use_statistics(head, "population"):
            assert torch.equal(head(x, BOXES), population)
        torch.testing.assert_close(head(x, BOXES), torch.cat(each))
    assert not head.pooler._forward_pre_hooks
    assert torch.equal(head(x, BOXES), population)


def test_training_goes_on_as_if_nothing_had_happened():
    heads = [Head(batch="shuffled", virtual_workers=2) for _ in range(2)]
    x = torch.randn(40, 2, 3, 3)
    boxes = [range(20), range(20)]
    for head in heads:
        head(x, boxes)
    others = use_statistics(heads[0], "minibatch", batch="images", virtual_workers=1)
    with pytest.raises(RuntimeError, match="mine"), others:
        for _ in range(3):
            heads[0](x, [range(40)])
        raise RuntimeError("mine")
    assert heads[0].roi_layout.settings == heads[1].roi_layout.settings
    assert heads[0].roi_layout.rois_per_image == (20, 20)
    first, second = (head.roi_layout.partition(40, CPU).group for head in heads)
    assert torch.equal(first, second)
    assert torch.equal(heads[0](x, boxes), heads[1](x, boxes))


@pytest.mark.parametrize("exchange", ["features", "statistics"])
def test_heads_stop_moving_features(exchange, monkeypatch):
    moved = []
    shuffle = RoILayout.shuffle
    monkeypatch.setattr(RoILayout, "shuffle", lambda self, x: moved.append(1) or shuffle(self, x))
    head = Head(batch="shuffled", exchange=exchange)
    x = torch.randn(4, 2, 3, 3)
    with use_statistics(head, exchange="statistics"):
        head(x, BOXES)
    assert not moved
    head(x, BOXES)
    assert len(moved) == (exchange == "features")


def test_another_batch_for_the_same_recording():
    """Settings may change between two layers that see the same RoIs."""
    head = Head(batch="worker")
    x = torch.randn(4, 2, 3, 3)
    head(x, BOXES)
    assert head.roi_layout.partition(4, CPU).num_groups == 1
    with use_statistics(head, batch="images"):
        assert head.roi_layout.partition(4, CPU).num_groups == 2
    assert head.roi_layout.partition(4, CPU).num_groups == 1


def test_every_layout_of_a_model_is_found_once():
    backbone = convert_batchnorm(nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)))
    model = nn.ModuleList([backbone, Head(), RoIBatchNorm2d(2), nn.BatchNorm2d(2)])
    assert layouts_of(model) == [backbone[0].layout, model[1].roi_layout, model[2].layout]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"statistics": "ema"}, "'ema'"),
        ({"statistics": "precise"}, "update_population_stats"),
        ({"batch": "gpu"}, "'gpu'"),
        ({"virtual_workers": 2, "exchange": "features"}, "virtual_workers 2"),
    ],
)
def test_what_is_not_valid_changes_nothing(arguments, named):
    heads = nn.ModuleList([Head(batch="worker"), Head(batch="shuffled")])
    before = [head.roi_layout.settings for head in heads]
    with pytest.raises(ValueError, match=named), use_statistics(heads, **arguments):
        pass
    assert [head.roi_layout.settings for head in heads] == before
    assert STATISTICS == ("minibatch", "population", "precise")
