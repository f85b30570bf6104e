"""The normalization batch of a PreciseBN pass: against torch's BatchNorm on each group."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bn_detect.layers import NormalizationBatch, RoILayout, convert_batchnorm, use_layout
from bn_detect.population import update_population_stats
from tests.helpers.ranks import run_ranks

C = 3
IMAGES = (6, 4)  # of the batches
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def two_layers() -> nn.Sequential:
    """The second layer's input shows with which groups the first one normalized."""
    return nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C)).double()


def batches(rank: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(rank)
    return [torch.randn(n, C, 2, 2, generator=g, dtype=torch.float64).exp() for n in IMAGES]


def expected(groups: list[Tensor]) -> Tensor:
    """The running mean of the second layer."""
    values = torch.cat([F.batch_norm(x, None, None, training=True).relu() for x in groups])
    return values.mean((0, 2, 3))


@pytest.mark.parametrize("source", ["train", "test"])
@pytest.mark.parametrize(("images_per_group", "size"), [(0, 99), (3, 3), (4, 4), (None, 2)])
@pytest.mark.parametrize("batch", ["images", "worker", "shuffled", "global"])
def test_groups_of_images(batch, images_per_group, size, source):
    virtual = {} if batch == "images" else {"virtual_workers": 2}
    model = convert_batchnorm(two_layers(), batch, images_per_group=2, **virtual)
    settings, layout = model[0].layout.settings, model[0].layout
    update_population_stats(
        model, batches(), 2, images_per_group=images_per_group, roi_source=source, progress=False
    )
    assert layout.settings is settings
    if images_per_group is None and batch == "worker":
        groups = [part for x in batches() for part in x.split(len(x) // 2)]
    elif images_per_group is None and batch == "global":
        groups = batches()
    elif images_per_group is None and batch == "shuffled":
        return  # random groups; other tests know them
    else:
        groups = [part for x in batches() for part in x.split(size)]
    torch.testing.assert_close(model[2].running_mean, expected(groups), **CLOSE)


def test_rois_of_a_head_are_grouped_by_their_images():
    layout = RoILayout(NormalizationBatch("shuffled", virtual_workers=2))
    head = use_layout(two_layers(), layout)
    rois = [(3, 0, 2, 1), (1, 1, 2, 0)]

    def forward(batch: tuple[Tensor, tuple[int, ...]]) -> None:
        layout.record(batch[1])
        head(batch[0])

    data = list(zip(batches(), rois, strict=True))
    update_population_stats(head, data, 2, images_per_group=2, forward=forward, progress=False)
    groups = [part for x, (a, b, *_) in data for part in x.split([a + b, len(x) - a - b])]
    torch.testing.assert_close(head[2].running_mean, expected(groups), **CLOSE)


def on_rank(rank: int, world_size: int) -> Tensor:
    model = convert_batchnorm(two_layers(), "worker")
    data = [batches(1)[0][:0], batches(1)[1]] if rank else batches(0)
    update_population_stats(model, data, 2, progress=False)
    return model[2].running_mean


def test_all_images_of_a_batch_are_those_of_all_ranks():
    """By default; one rank has no image in one batch."""
    (first, second), (_, other) = batches(0), batches(1)
    for mean in run_ranks(on_rank, 2):
        torch.testing.assert_close(mean, expected([first, torch.cat([second, other])]), **CLOSE)


def test_mistakes():
    with pytest.raises(ValueError, match="images_per_group is -1"):
        update_population_stats(two_layers(), batches(), 2, images_per_group=-1, progress=False)
