"""N real ranks equal one process on the concatenated data with N virtual workers."""

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bn_detect.distributed import shuffle_rois, unshuffle_rois
from bn_detect.layers import (
    NormalizationBatch,
    RoIBatchNorm2d,
    RoILayout,
    average_running_statistics,
    grouped_batch_norm,
    use_layout,
)

from ..helpers.ranks import run_ranks
from .reference import EPS, affine, features, group_ids, grouped_reference, loss, outcome

IMAGES = 4  # per worker
STEPS = {  # RoIs of each worker in each step
    2: [(5, 3), (8, 0), (0, 0), (1, 7), (4, 4)],
    3: [(5, 3, 0), (0, 8, 1), (0, 0, 0), (1, 7, 4), (3, 0, 3)],
    4: [(5, 3, 0, 2), (0, 0, 8, 0), (0, 0, 0, 0), (1, 7, 2, 1), (0, 1, 3, 4)],
}
FULL_STEPS = {2: [(5, 3), (1, 7)], 3: [(5, 3, 2), (1, 7, 4)], 4: [(5, 3, 1, 2), (1, 7, 2, 1)]}


class Case(NamedTuple):
    """How a small head is trained. batch "torch": with torch.nn.BatchNorm instead of ours."""

    batch: str
    images_per_group: int = 1
    exchange: str = "statistics"
    momentum: float | None = 0.1
    fc: bool = False  # Linear layers on (R, C); running statistics averaged in every step
    full: bool = False  # steps in which no worker is without RoIs
    dtype: torch.dtype = torch.float64

    @property
    def one_process(self) -> "Case":
        return self._replace(exchange="statistics")


CASES = {
    "images": Case("images"),
    "2 images": Case("images", 2),
    "3 images": Case("images", 3),
    "worker": Case("worker"),
    "shuffled": Case("shuffled"),
    "shuffled, moving features": Case("shuffled", exchange="features"),
    "global": Case("global"),
    "images, cumulative average": Case("images", momentum=None),
    "shuffled, cumulative average": Case("shuffled", momentum=None),
    "features, cumulative average": Case("shuffled", exchange="features", momentum=None),
    "images, fc": Case("images", fc=True),
    "worker, fc": Case("worker", fc=True),
    "shuffled, fc": Case("shuffled", fc=True),
    "features, fc": Case("shuffled", exchange="features", fc=True),
    "global, fc": Case("global", fc=True),
}
OTHER_CASES = {
    "worker, full": Case("worker", full=True),
    "global, full": Case("global", full=True),
    "torch": Case("torch", full=True),
    "float32 statistics": Case("shuffled", dtype=torch.float32),
    "float32 features": Case("shuffled", exchange="features", dtype=torch.float32),
}


def make_head(case: Case, layout: RoILayout) -> nn.Module:
    torch.manual_seed(0)
    if case.fc:
        layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3)]
    else:
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh()]
        layers += [nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3)]
    head = nn.Sequential(*layers).to(case.dtype)
    for i in (1, 4):
        head[i].momentum = case.momentum
        head[i].weight.data, head[i].bias.data = affine(head[i].num_features, case.dtype)
    return head if case.batch == "torch" else use_layout(head, layout)


def worker_rois(case: Case, rois: int, worker: int, step: int) -> tuple[Tensor, list[int]]:
    """(rois, ...) features and the RoIs of each of the worker's images, some of which have none."""
    seed = 100 * worker + step
    image = torch.randint(IMAGES, (rois,), generator=torch.Generator().manual_seed(seed))
    shape = (rois, 3) if case.fc else (rois, 3, 5, 5)
    x = features(*shape, mean=worker, std=1 + worker, seed=seed)
    return x.to(case.dtype), torch.bincount(image, minlength=IMAGES).tolist()


def train(case: Case, world_size: int, rank: int | None) -> dict:
    """SGD on the RoIs of `rank`, or in one process on all ranks' (None) as virtual workers.

    Returns outputs (per step), input_gradients (per step), gradients (per step, summed over ranks),
    and buffers at the end (averaged over ranks).
    """
    workers = range(world_size) if rank is None else [rank]
    batch = "worker" if case.batch == "torch" else case.batch
    layout = RoILayout(
        NormalizationBatch(batch, case.images_per_group, len(workers), case.exchange, seed=3)
    )
    head = make_head(case, layout)
    results = {"outputs": [], "input_gradients": [], "gradients": []}
    for step, split in enumerate((FULL_STEPS if case.full else STEPS)[world_size]):
        parts = [worker_rois(case, split[w], w, step) for w in workers]
        x = torch.cat([x for x, _ in parts]).requires_grad_()
        layout.record([rois for _, images in parts for rois in images])
        if case.exchange == "features":
            moved, plan = shuffle_rois(x, layout.generator())
            y = unshuffle_rois(head(moved), plan)
        else:
            y = head(x)
        head.zero_grad()
        loss(y).backward()
        gradient = parameters_to_vector([p.grad for p in head.parameters()])
        if rank is not None:
            dist.all_reduce(gradient)
        weights = parameters_to_vector(head.parameters()) - 1e-3 * gradient
        vector_to_parameters(weights.detach(), head.parameters())
        if case.fc:
            average_running_statistics(head)
        results["outputs"].append(y.detach())
        results["input_gradients"].append(x.grad)
        results["gradients"].append(gradient)
    average_running_statistics(head)
    return results | {"buffers": dict(head.named_buffers())}


def joined(by_rank: list[dict]) -> dict:
    """The ranks' results as one process would give them; what is common must be the same."""
    for other in by_rank[1:]:
        torch.testing.assert_close(other["buffers"], by_rank[0]["buffers"], rtol=0, atol=0)
    per_step = {
        key: [torch.cat(parts) for parts in zip(*(r[key] for r in by_rank), strict=True)]
        for key in ("outputs", "input_gradients")
    }
    return by_rank[0] | per_step


# Single calls of `grouped_batch_norm` over ranks.

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


# Layouts and running statistics over ranks.


def groups_on_rank(rank: int, world_size: int, rois: tuple) -> tuple[Tensor, Tensor]:
    """Of the RoIs numbered over all ranks: the group of this rank's, and those moved to it."""
    layout = RoILayout(NormalizationBatch("shuffled"))
    layout.record([rois[rank]])
    start = sum(rois[:rank])
    number = torch.arange(start, start + rois[rank])
    moved, _ = shuffle_rois(number, layout.generator())
    return layout.partition(rois[rank], torch.device("cpu")).group, moved


def averaged_on_rank(rank: int, world_size: int) -> list[dict]:
    """Layers whose running statistics hold the rank's number, of which ours has weight rank / 4."""
    ours = RoIBatchNorm2d(2)
    ours.ema_weight.fill_(rank / 4)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False), ours)
    for layer in (model[0], model[2]):
        layer.running_mean.fill_(rank)
        layer.running_var.fill_(10 * rank)
    average_running_statistics(model)
    return [dict(layer.named_buffers()) for layer in (model[0], model[2])]


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


def everything(rank: int, world_size: int) -> dict:
    """All that this module runs on `world_size` ranks."""
    cases = CASES | OTHER_CASES
    results = {name: train(case, world_size, rank) for name, case in cases.items()}
    results["calls"] = {name: call_on_rank(rank, world_size, *call) for name, call in CALLS.items()}
    results["spread"] = {
        dtype: spread_on_rank(rank, world_size, dtype) for dtype in (torch.float32, torch.float64)
    }
    results["second derivative"] = second_derivative_error(rank, world_size)
    results["groups"] = [groups_on_rank(rank, world_size, split) for split in STEPS[world_size]]
    results["averaged"] = averaged_on_rank(rank, world_size)
    if world_size == 4:
        results["subgroup"] = subgroup_on_rank(rank, world_size)
    return results


@pytest.fixture(scope="module", params=[2, 3, 4], ids="{} ranks".format)
def ranks(request) -> list[dict]:
    """What each of 2, 3 and 4 ranks gives."""
    return run_ranks(everything, request.param)


@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_virtual_workers(ranks, name):
    expected = train(CASES[name].one_process, len(ranks), None)
    torch.testing.assert_close(joined([r[name] for r in ranks]), expected, rtol=1e-11, atol=1e-11)


def test_moving_features_equals_exchanging_statistics_in_float32(ranks):
    moved, exchanged = (
        joined([r[f"float32 {exchange}"] for r in ranks]) for exchange in ("features", "statistics")
    )
    torch.testing.assert_close(moved.pop("buffers"), exchanged.pop("buffers"), rtol=1e-5, atol=1e-5)
    for key, steps in exchanged.items():
        for a, b in zip(moved[key], steps, strict=True):
            # Relative to the largest: the gradient of a bias before BN is 0 but for rounding.
            scale = b.abs().max() if len(b) else 0
            torch.testing.assert_close(a, b, rtol=0, atol=3e-6 * float(scale))


def test_worker_equals_torch_batch_norm_on_each_worker(ranks):
    ours, theirs = (joined([r[name] for r in ranks]) for name in ("worker, full", "torch"))
    ours["buffers"] = {k: v for k, v in ours["buffers"].items() if k in theirs["buffers"]}
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_global_equals_torch_batch_norm_on_everything(ranks):
    ours = joined([r["global, full"] for r in ranks])
    theirs = train(OTHER_CASES["torch"], len(ranks), None)
    ours["buffers"] = {k: v for k, v in ours["buffers"].items() if k in theirs["buffers"]}
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CALLS)
def test_groups_that_span_ranks_equal_batch_norm_on_each_group(ranks, name):
    positions, kwargs = CALLS[name]
    x, group = call_data(positions)
    expected = outcome(grouped_reference, x, *affine(3), group, len(SIZES), EPS, **kwargs)
    by_rank = [r["calls"][name] for r in ranks]
    close = {"rtol": 1e-11, "atol": 1e-11}
    for rank, result in enumerate(by_rank):
        for key in ("mean", "var", "count"):
            torch.testing.assert_close(getattr(result, key), getattr(expected, key), **close)
        for key in ("y", "dx"):
            part = share(getattr(expected, key), rank, len(ranks))
            torch.testing.assert_close(getattr(result, key), part, **close)
    for key in ("dweight", "dbias"):
        total = sum(getattr(result, key) for result in by_rank)
        torch.testing.assert_close(total, getattr(expected, key), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small_spread_about_a_large_mean(ranks, dtype):
    x, group = call_data((7, 7), mean=100, std=1e-3)
    x = x.to(dtype).double()
    expected = grouped_reference(x[:, :3], None, None, group, len(SIZES))[2]
    for r in ranks:
        torch.testing.assert_close(r["spread"][dtype].double(), expected, rtol=1e-3, atol=0)


def test_second_derivatives_across_ranks_are_refused(ranks):
    for r in ranks:
        assert "second derivatives stop at a statistic that is shared" in r["second derivative"]


def test_shuffled_groups_are_those_of_moved_features(ranks):
    for step, split in enumerate(STEPS[len(ranks)]):
        group = torch.cat([r["groups"][step][0] for r in ranks])
        sizes = torch.bincount(group, minlength=len(ranks))
        assert len(group) == sum(split) and sizes.max() - sizes.min() <= 1
        for rank, r in enumerate(ranks):
            moved_here = r["groups"][step][1].sort().values
            assert torch.equal(moved_here, torch.nonzero(group == rank)[:, 0])


def test_running_statistics_are_averaged_by_weight(ranks):
    number = torch.arange(len(ranks)).double()
    for plain, ours in (r["averaged"] for r in ranks):
        for buffers, mean in (
            (plain, number.mean()),
            (ours, number.square().sum() / number.sum()),
        ):
            torch.testing.assert_close(buffers["running_mean"], torch.full((2,), mean))
            torch.testing.assert_close(buffers["running_var"], torch.full((2,), 10 * mean))
        assert ours["ema_weight"] == 1


def test_workers_may_be_some_of_the_ranks(ranks):
    if len(ranks) < 4:
        pytest.skip("two pairs need 4 ranks")
    layout = RoILayout(NormalizationBatch("shuffled", virtual_workers=2))
    layout.record([4, 3])
    shuffled = layout.partition(7, torch.device("cpu")).group
    for first in (0, 2):
        x = torch.cat([features(4, 3, 2, 2, seed=first), features(3, 3, 2, 2, seed=first + 1)])
        for batch, group in (("global", torch.zeros(7)), ("shuffled", shuffled)):
            y = torch.cat([r["subgroup"][batch] for r in ranks[first : first + 2]])
            expected = grouped_reference(x, None, None, group, 2)[0]
            torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
