"""`RoILayout` on one process: who is in which group, and which shuffle is drawn."""

import copy
import io

import pytest
import torch
from torch import nn

from bn_detect.distributed import shuffle_rois
from bn_detect.layers import (
    NormalizationBatch,
    RoIBatchNorm2d,
    RoILayout,
    convert_roi_batchnorm,
    set_iteration,
)

CPU = torch.device("cpu")


def layout_for(batch="shuffled", name="roi_head", **kwargs) -> RoILayout:
    return RoILayout(NormalizationBatch(batch, **kwargs), name)


def groups(layout: RoILayout, rois_per_image: list[int], training: bool = True) -> list[int]:
    """The group of each RoI in a new forward."""
    layout.record(rois_per_image)
    return layout.partition(sum(rois_per_image), CPU, training).group.tolist()


# The partition.


@pytest.mark.parametrize(
    ("setting", "expected", "number"),
    [
        ({"batch": "images"}, [0, 0, 2, 3, 3, 3], 4),
        ({"batch": "images", "images_per_group": 2}, [0, 0, 1, 1, 1, 1], 2),
        ({"batch": "images", "images_per_group": 3}, [0, 0, 0, 1, 1, 1], 2),
        ({"batch": "images", "images_per_group": 9}, [0, 0, 0, 0, 0, 0], 1),
        (
            {"batch": "images", "images_per_group": 9, "virtual_workers": 2},
            [0, 0, 1, 1, 1, 1],
            2,
        ),
        ({"batch": "worker"}, [0, 0, 0, 0, 0, 0], 1),
        ({"batch": "worker", "virtual_workers": 2}, [0, 0, 1, 1, 1, 1], 2),
        ({"batch": "worker", "virtual_workers": 4}, [0, 0, 2, 3, 3, 3], 4),
        ({"batch": "global", "virtual_workers": 2}, [0, 0, 0, 0, 0, 0], 1),
        ({"batch": "shuffled", "exchange": "features"}, [0, 0, 0, 0, 0, 0], 1),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_groups(setting, expected, number):
    layout = layout_for(**setting)
    assert groups(layout, [2, 0, 1, 3]) == expected
    assert layout.partition(6, CPU).num_groups == number
    assert groups(layout, [2, 0, 1, 3], training=False) == [0, 0, 2, 3, 3, 3]  # images


@pytest.mark.parametrize("rois", [0, 1, 3, 4, 15, 16, 17])
def test_shuffled_groups_are_balanced_to_within_one_roi(rois):
    layout = layout_for(virtual_workers=4)
    layout.record([rois])
    partition = layout.partition(rois, CPU)
    sizes = torch.bincount(partition.group, minlength=4)
    assert partition.num_groups == len(sizes) == 4
    assert sizes.sum() == rois and sizes.max() - sizes.min() <= 1


def test_all_pairs_of_rois_meet_about_equally_often():
    layout = layout_for(virtual_workers=2)
    together = torch.zeros(6, 6)
    for _ in range(200):
        group = torch.tensor(groups(layout, [3, 3]))
        together += group[:, None] == group
    share = together[~torch.eye(6, dtype=torch.bool)] / 200
    assert (share - 0.4).abs().max() < 0.15  # 2 of the 5 others are in a RoI's group; sigma 0.035


def test_moved_features_meet_in_the_same_groups():
    """Positions of the shuffled order are dealt out in balanced consecutive shares."""
    layout = layout_for(virtual_workers=3)
    group = torch.tensor(groups(layout, [4, 7]))
    _, plan = shuffle_rois(torch.zeros(11, 1), layout.generator())
    dealt = [set(share.tolist()) for share in plan.permutation.tensor_split([3, 7])]
    assert dealt == [set(torch.nonzero(group == g)[:, 0].tolist()) for g in range(3)]


# The draws.

ROIS = [20, 20]


def test_each_recording_draws_afresh_and_all_layers_share_the_draw():
    layout = layout_for(virtual_workers=2)
    draws = [groups(layout, ROIS) for _ in range(3)]
    assert draws[0] != draws[1] != draws[2] != draws[0]
    assert layout.partition(40, CPU) is layout.partition(40, CPU)


def test_without_recordings_a_layer_that_asks_again_begins_a_forward():
    layout = layout_for(virtual_workers=2)
    first, second = (
        [layout.partition(40, CPU, layer=layer).group.tolist() for layer in (1, 2, 3)]
        for _ in range(2)
    )
    assert first[0] == first[1] == first[2]
    assert second[0] == second[1] == second[2]
    assert first[0] != second[0]


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
def test_set_iteration_repeats_the_draws(recorded):
    def draws(layout: RoILayout, iteration: int) -> list:
        layout.set_iteration(iteration)
        if recorded:
            return [groups(layout, ROIS) for _ in range(2)]
        return [layout.partition(40, CPU, layer=1).group.tolist() for _ in range(2)]

    layout, resumed = layout_for(virtual_workers=2), layout_for(virtual_workers=2)
    whole = [draws(layout, iteration) for iteration in range(4)]
    assert draws(resumed, 2) == whole[2]
    assert draws(resumed, 3) == whole[3]
    assert draws(layout, 1) == whole[1]
    assert len({str(draw) for step in whole for draw in step}) == 8


def test_both_exchanges_draw_alike_in_every_forward():
    """In a layout that nobody informs, too."""
    moving, staying = (layout_for(exchange=each) for each in ("features", "statistics"))
    x, states = torch.randn(6, 2), []
    for iteration in (None, None, 7, None):
        if iteration is not None:
            moving.set_iteration(iteration)
            staying.set_iteration(iteration)
        moving.shuffle(x)
        for layer in (1, 2):  # the layers of one head
            moving.partition(len(x), x.device, layer=layer)
            staying.partition(len(x), x.device, layer=layer)
        assert torch.equal(moving.generator().get_state(), staying.generator().get_state())
        states.append(tuple(moving.generator().get_state().tolist()))
    assert len(set(states)) == len(states)


def test_seeds_and_names_draw_differently():
    layouts = [
        layout_for(virtual_workers=2),
        layout_for(virtual_workers=2, name="mask"),
        layout_for(virtual_workers=2, seed=1),
    ]
    assert len({str(groups(layout, ROIS)) for layout in layouts}) == 3
    assert groups(layout_for(virtual_workers=2), ROIS) == groups(
        layout_for(virtual_workers=2), ROIS
    )


def test_a_pooler_draws_nothing_at_inference():
    """Ranks with unequal shares of a test set must draw alike afterwards."""
    poolers = [Pooler(), Pooler()]
    layouts = [layout_for(virtual_workers=2), layout_for(virtual_workers=2)]
    for pooler, layout in zip(poolers, layouts, strict=True):
        layout.watch(pooler)
    poolers[0].eval()(torch.zeros(1), [[1], [2]])
    poolers[0].train()
    draws = []
    for pooler, layout in zip(poolers, layouts, strict=True):
        pooler(torch.zeros(1), [range(40)])
        draws.append(layout.partition(40, CPU).group.tolist())
    assert draws[0] == draws[1]


# The hook.


class Pooler(nn.Module):
    """One row of features per box."""

    def forward(self, features: torch.Tensor, boxes: list) -> torch.Tensor:
        return features[: sum(map(len, boxes))]


class Head(nn.Module):
    """A pooler and two BN layers behind one layout."""

    def __init__(self, batch: str, **kwargs) -> None:
        super().__init__()
        self.pooler = Pooler()
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Tanh(), nn.BatchNorm2d(3))
        convert_roi_batchnorm(self.layers, batch, pooler=self.pooler, **kwargs)

    def forward(self, features: torch.Tensor, boxes: list) -> torch.Tensor:
        return self.layers(self.pooler(features, boxes=boxes))


def test_the_pooler_is_watched_until_the_hook_is_removed():
    layout, pooler = layout_for("images"), Pooler()
    handle = layout.watch(pooler)
    pooler(torch.zeros(6), [range(2), [], range(4)])
    assert layout.rois_per_image == (2, 0, 4)
    handle.remove()
    pooler(torch.zeros(6), [range(6)])
    assert layout.rois_per_image == (2, 0, 4)


def through_pickle(head: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("batch", ["images", "shuffled"])
def test_a_copy_of_a_model_has_a_layout_and_a_pooler_of_its_own(copied, batch):
    head = Head(batch, virtual_workers=2)
    x, boxes = torch.randn(9, 3, 2, 2), [range(5), range(4)]
    head(x, boxes)
    twin = copied(head)
    (layout,), (layout_of_twin,) = (
        {m.layout for m in h.modules() if isinstance(m, RoIBatchNorm2d)} for h in (head, twin)
    )
    assert layout is not layout_of_twin
    assert layout_of_twin.rois_per_image == (5, 4)

    expected = head(x, boxes)
    torch.testing.assert_close(twin(x, boxes), expected, rtol=0, atol=0)
    twin(x[:3], [range(1), range(2)])
    assert layout_of_twin.rois_per_image == (1, 2)
    assert layout.rois_per_image == (5, 4)


def test_set_iteration_reaches_every_layout_of_a_model():
    heads = nn.ModuleList([Head("shuffled"), Head("shuffled")])
    set_iteration(heads, 7)
    states = [m.layout.generator().get_state() for m in heads.modules() if hasattr(m, "layout")]
    assert len(states) == 4 and all(torch.equal(state, states[0]) for state in states)
    fresh = layout_for("shuffled")
    fresh.set_iteration(7)
    assert torch.equal(states[0], fresh.generator().get_state())


# Errors.


@pytest.mark.parametrize(
    ("setting", "recorded", "rois", "message"),
    [
        ({"batch": "images"}, None, 4, "no pooler was watched: pass the head's pooler"),
        ({"batch": "worker", "virtual_workers": 2}, None, 4, "no pooler was watched"),
        ({"batch": "images"}, [2, 3], 4, "the layer got 4 RoIs, but its pooler made 5"),
        ({"batch": "shuffled"}, [2, 3], 4, "the layer got 4 RoIs, but its pooler made 5"),
        (
            {"batch": "images", "virtual_workers": 2},
            [1, 1, 1],
            3,
            r"MODEL.ROI_BN.VIRTUAL_WORKERS is 2, which does not divide the 3 images.*\(box\)",
        ),
        (
            {"batch": "worker", "virtual_workers": 4},
            [1, 1],
            2,
            "MODEL.ROI_BN.VIRTUAL_WORKERS is 4, which does not divide the 2 images",
        ),
    ],
)
def test_what_cannot_be_partitioned_is_named(setting, recorded, rois, message):
    layout = layout_for(**setting, name="box")
    if recorded is not None:
        layout.record(recorded)
    with pytest.raises(ValueError, match=message) as error:
        layout.partition(rois, CPU)
    assert "box" in str(error.value)


@pytest.mark.parametrize("batch", ["worker", "shuffled", "global"])
def test_layers_with_other_rois_may_share_a_layout_unless_it_shuffles(batch):
    """A rank whose two heads have equal numbers of RoIs by chance would not join the others."""
    layout = layout_for(batch, name="box")
    layout.partition(5, CPU, layer=1)
    if batch == "shuffled":
        with pytest.raises(ValueError, match="box: layers that share a RoILayout got 5 and 3 RoIs"):
            layout.partition(3, CPU, layer=2)
    else:
        assert len(layout.partition(3, CPU, layer=2).group) == 3
    assert len(layout.partition(4, CPU, layer=1).group) == 4  # another forward
