"""Groups and layouts that span 2, 3 and 4 real ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bn_detect.distributed import shuffle_rois
from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout, grouped_batch_norm

from .reference import EPS, affine, features, group_ids, grouped_reference, outcome
from .test_heads_on_ranks import STEPS

SIZES = (7, 0, 1, 12)  # of the groups
POPULATION = torch.tensor([[0.3, 0, -1], [2, 1, 0.5]], dtype=torch.float64)
CALLS = {
    "conv": ((3, 4, 5), {}),
    "fc, one group a single value": ((3,), {}),
    "fc, with a population": ((3,), {"population": POPULATION}),
}


def call_data(positions: tuple, **kwargs) -> tuple[Tensor, Tensor]:
    """All ranks' RoIs and their groups, which span ranks."""
    return features(sum(SIZES), *positions, **kwargs), group_ids(list(SIZES))


def share(t: Tensor, rank: int, world_size: int) -> Tensor:
    """This rank's rows: many on rank 0, none on the last but one (of more than 2), else few."""
    counts = [len(t) - 3, 3] if world_size == 2 else [len(t) - 3, *[0] * (world_size - 2), 3]
    return t.split(counts)[rank]


def call_on_rank(rank: int, world_size: int, positions: tuple, kwargs: dict):
    x, group = (share(t, rank, world_size) for t in call_data(positions))
    return outcome(
        grouped_batch_norm, x, *affine(3), group, len(SIZES), EPS, dist.group.WORLD, **kwargs
    )


def spread_on_rank(rank: int, world_size: int, dtype: torch.dtype) -> Tensor:
    x, group = call_data((7, 7), mean=100, std=1e-3)
    x, group = (share(t, rank, world_size) for t in (x.to(dtype), group))
    return grouped_batch_norm(x[:, :3], None, None, group, len(SIZES), EPS, dist.group.WORLD)[2]


def second_derivative_error(rank: int, world_size: int) -> str:
    x, group = (share(t, rank, world_size) for t in call_data((3, 2)))
    y = grouped_batch_norm(
        x.requires_grad_(), *affine(3), group, len(SIZES), EPS, dist.group.WORLD
    )[0]
    try:
        torch.autograd.grad(y.sum(), x, create_graph=True)
    except RuntimeError as error:
        return str(error)
    return ""


# Layouts over ranks.


def groups_on_rank(rank: int, world_size: int, rois: tuple) -> tuple[Tensor, Tensor]:
    """Of the RoIs numbered over all ranks: the group of this rank's, and those moved to it."""
    layout = RoILayout(NormalizationBatch("shuffled"))
    layout.record([rois[rank]])
    start = sum(rois[:rank])
    number = torch.arange(start, start + rois[rank])
    moved, _ = shuffle_rois(number, layout.generator())
    return layout.partition(rois[rank], torch.device("cpu")).group, moved


def subgroup_on_rank(rank: int, world_size: int) -> dict:
    """Of 4 ranks, two pairs of workers; what `global` and `shuffled` make of a pair's RoIs."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    x = features(4 - rank % 2, 3, 2, 2, seed=rank)
    results = {}
    for batch in ("global", "shuffled"):
        layout = RoILayout(NormalizationBatch(batch), process_group=pairs[rank // 2])
        layout.record([len(x)])
        layer = RoIBatchNorm2d(3, dtype=torch.float64, layout=layout)
        results[batch] = layer(x).detach()
    return results


def on_rank(rank: int, world_size: int) -> dict:
    """All that this module runs on one of `world_size` ranks."""
    return {
        "calls": {name: call_on_rank(rank, world_size, *call) for name, call in CALLS.items()},
        "spread": {
            dtype: spread_on_rank(rank, world_size, dtype)
            for dtype in (torch.float32, torch.float64)
        },
        "second derivative": second_derivative_error(rank, world_size),
        "layouts": [groups_on_rank(rank, world_size, split) for split in STEPS[world_size]],
        "subgroup": subgroup_on_rank(rank, world_size) if world_size == 4 else None,
    }


@pytest.fixture
def groups(ranks) -> list[dict]:
    return [r["groups"] for r in ranks]


@pytest.mark.parametrize("name", CALLS)
def test_groups_that_span_ranks_equal_batch_norm_on_each_group(groups, name):
    positions, kwargs = CALLS[name]
    x, group = call_data(positions)
    expected = outcome(grouped_reference, x, *affine(3), group, len(SIZES), EPS, **kwargs)
    by_rank = [r["calls"][name] for r in groups]
    close = {"rtol": 1e-11, "atol": 1e-11}
    for rank, result in enumerate(by_rank):
        for key in ("mean", "var", "count"):
            torch.testing.assert_close(getattr(result, key), getattr(expected, key), **close)
        for key in ("y", "dx"):
            part = share(getattr(expected, key), rank, len(groups))
            torch.testing.assert_close(getattr(result, key), part, **close)
    for key in ("dweight", "dbias"):
        total = sum(getattr(result, key) for result in by_rank)
        torch.testing.assert_close(total, getattr(expected, key), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small_spread_about_a_large_mean(groups, dtype):
    x, group = call_data((7, 7), mean=100, std=1e-3)
    x = x.to(dtype).double()
    expected = grouped_reference(x[:, :3], None, None, group, len(SIZES))[2]
    for r in groups:
        torch.testing.assert_close(r["spread"][dtype].double(), expected, rtol=1e-5, atol=0)


def test_second_derivatives_across_ranks_are_refused(groups):
    for r in groups:
        assert "second derivatives stop at a statistic that is shared" in r["second derivative"]


def test_shuffled_groups_are_those_of_moved_features(groups):
    for step, split in enumerate(STEPS[len(groups)]):
        group = torch.cat([r["layouts"][step][0] for r in groups])
        sizes = torch.bincount(group, minlength=len(groups))
        assert len(group) == sum(split) and sizes.max() - sizes.min() <= 1
        for rank, r in enumerate(groups):
            moved_here = r["layouts"][step][1].sort().values
            assert torch.equal(moved_here, torch.nonzero(group == rank)[:, 0])


def test_workers_may_be_some_of_the_ranks(groups):
    if len(groups) < 4:
        pytest.skip("two pairs need 4 ranks")
    layout = RoILayout(NormalizationBatch("shuffled", virtual_workers=2))
    layout.record([4, 3])
    shuffled = layout.partition(7, torch.device("cpu")).group
    for first in (0, 2):
        x = torch.cat([features(4, 3, 2, 2, seed=first), features(3, 3, 2, 2, seed=first + 1)])
        for batch, group in (("global", torch.zeros(7)), ("shuffled", shuffled)):
            y = torch.cat([r["subgroup"][batch] for r in groups[first : first + 2]])
            expected = grouped_reference(x, None, None, group, 2)[0]
            torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
