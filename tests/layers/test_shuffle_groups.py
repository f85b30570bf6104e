"""Shuffling confined to groups of workers: on 4 ranks, in worlds of 2, and in one process."""

import copy
import itertools
import pickle
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from bn_detect.distributed import unshuffle_rois
from bn_detect.distributed.neighbours import neighbours
from bn_detect.layers import NormalizationBatch, RoILayout, convert_roi_batchnorm

from .reference import loss
from .test_heads_on_ranks import STEPS, Case, joined, make_head, train, worker_rois

CPU = torch.device("cpu")
CASES = {  # how a head is trained, and the virtual workers of each rank
    f"{exchange}, groups of {size}, {virtual} a rank{', fc' if fc else ''}": (
        Case("shuffled", exchange=exchange, shuffle_groups=size, fc=fc),
        virtual,
    )
    for exchange, size, virtual, fc in [
        ("statistics", 1, 1, False),
        ("statistics", 2, 1, False),
        ("statistics", 2, 1, True),
        ("statistics", 4, 1, False),
        ("statistics", 1, 2, False),
        ("statistics", 2, 2, False),
        ("statistics", 4, 2, False),
        ("statistics", 4, 2, True),
        ("features", 1, 1, False),
        ("features", 2, 1, False),
        ("features", 2, 1, True),
    ]
}
PAIRS = {exchange: Case("shuffled", exchange=exchange) for exchange in ("statistics", "features")}


def on_rank(rank: int, world_size: int) -> dict:
    """In a world of 4 every case; in a world of 2 what each pair of the 4 does by itself."""
    if world_size == 2:
        return {
            exchange: [by_itself(case, 0, 2 * pair + rank) for pair in (0, 1)]
            for exchange, case in PAIRS.items()
        } | {"alone": dist.get_process_group_ranks(neighbours(1))}
    if world_size < 4:
        return {}
    made = neighbours(2, timedelta(seconds=29))  # before the heads do, as in training
    trained = {name: train(case, 4 * v, rank, v) for name, (case, v) in CASES.items()}
    pairs = {exchange: by_itself(case, 2, rank) for exchange, case in PAIRS.items()}
    return (
        trained
        | pairs
        | {
            "groups": of_two(rank),
            "timeout": made._get_backend(CPU).options._timeout,
            "alone": dist.get_process_group_ranks(neighbours(1)),
            "error": of_three(),
        }
    )


def by_itself(case: Case, shuffle_groups: int, worker: int) -> dict:
    """A head that stays as it is, on the RoIs of one of 4 workers; all that is this worker's."""
    settings = NormalizationBatch(
        "shuffled", exchange=case.exchange, shuffle_groups=shuffle_groups, seed=3
    )
    layout = RoILayout(settings)
    head = make_head(case, layout)
    results: dict[str, list] = {"outputs": [], "input_gradients": [], "gradients": []}
    for step, split in enumerate(STEPS[4]):
        x, rois_per_image = worker_rois(case, split[worker], worker, step)
        x.requires_grad_()
        layout.record(rois_per_image)
        if case.exchange == "features":
            moved, plan = layout.shuffle(x)
            y = unshuffle_rois(head(moved), plan)
        else:
            y = head(x)
        head.zero_grad()
        loss(y).backward()
        results["outputs"].append(y.detach())
        results["input_gradients"].append(x.grad)
        results["gradients"].append([p.grad for p in head.parameters()])
    return results | {"buffers": dict(head.named_buffers())}


def of_two(rank: int) -> dict:
    """Which ranks are in the groups of 2, how often they are made, and what copies draw."""
    layout = RoILayout(NormalizationBatch("shuffled", shuffle_groups=2))
    layout.record([5 + rank])
    partition = layout.partition(5 + rank, CPU)
    group, number, pair = partition.group, partition.num_groups, partition.process_group
    twins = [copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))]
    return {
        "number": number,
        "ranks": dist.get_process_group_ranks(pair),
        "made once": pair is neighbours(2) is layout.settings.kind.span(dist.group.WORLD),
        "all": neighbours(4) is dist.group.WORLD,
        "copies": [torch.equal(twin.partition(5 + rank, CPU).group, group) for twin in twins],
    }


def of_three() -> str:
    layout = RoILayout(NormalizationBatch("shuffled", shuffle_groups=3))
    layout.record([1])
    try:
        return str(layout.partition(1, CPU))
    except ValueError as error:
        return str(error)


@pytest.fixture
def four(worlds) -> list[dict]:
    return [r["shuffle groups"] for r in worlds[4]]


@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_virtual_workers(four, name):
    case, virtual = CASES[name]
    expected = train(case.one_process, 4 * virtual, None)
    close = 1e-9 if case.fc else 1e-11
    torch.testing.assert_close(joined([r[name] for r in four]), expected, rtol=close, atol=close)


def test_the_size_of_the_groups_matters():
    """Else the tests above would hold for a key that nobody reads."""
    outputs = [
        torch.cat(train(Case("shuffled", shuffle_groups=size), 4, None)["outputs"])
        for size in (0, 1, 2)
    ]
    assert all((a - b).abs().max() > 0.1 for a, b in itertools.pairwise(outputs))


@pytest.mark.parametrize("exchange", PAIRS)
def test_two_pairs_of_ranks_equal_two_worlds_of_two(four, worlds, exchange):
    by_rank = [
        worlds[2][rank]["shuffle groups"][exchange][pair] for pair in (0, 1) for rank in (0, 1)
    ]
    for r, alone in zip(four, by_rank, strict=True):
        torch.testing.assert_close(r[exchange], alone, rtol=0, atol=0)


def test_groups_are_consecutive_ranks_and_made_once(four):
    for rank, r in enumerate(four):
        first = rank // 2 * 2
        assert r["groups"] == {
            "number": 2,
            "ranks": [first, first + 1],
            "made once": True,
            "all": True,
            "copies": [True, True],
        }


def test_groups_have_the_timeout_that_they_were_made_with(four):
    assert [r["timeout"] for r in four] == [timedelta(seconds=29)] * 4


def test_another_world_has_groups_of_its_own(worlds):
    for size in (2, 4):
        alone = [r["shuffle groups"]["alone"] for r in worlds[size]]
        assert alone == [[rank] for rank in range(size)]


def test_a_size_that_does_not_divide_the_ranks_is_refused(four):
    message = (
        "shuffle_groups is 3, which does not divide the 4 workers (4 processes, "
        "virtual_workers 1); use one of 1, 2, 4, or 0 for all workers"
    )
    assert [r["error"] for r in four] == [message] * 4


# One process.


def test_virtual_workers_shuffle_within_their_group():
    layout = RoILayout(NormalizationBatch("shuffled", virtual_workers=4, shuffle_groups=2))
    layout.record([3, 5, 1, 0, 2, 2, 0, 7])  # two images each: 8 and 1 RoIs, then 4 and 7
    partition = layout.partition(20, CPU)
    group = partition.group
    assert (partition.num_groups, partition.process_group) == (4, None)
    assert torch.bincount(group[:9]).tolist() == [4, 5]
    assert torch.bincount(group[9:]).tolist() == [0, 0, 5, 6]


def test_groups_without_images_or_rois_are_empty():
    layout = RoILayout(NormalizationBatch("shuffled", virtual_workers=4, shuffle_groups=2))
    for rois_per_image in ([], [0, 0, 0, 0], [0, 0, 3, 4]):
        layout.record(rois_per_image)
        partition = layout.partition(sum(rois_per_image), CPU)
        assert partition.num_groups == 4 and len(partition.group) == sum(rois_per_image)
        assert (partition.group >= 2).all()


def test_images_are_needed_where_a_process_holds_several_groups():
    assert NormalizationBatch("shuffled", virtual_workers=4, shuffle_groups=2).needs_images
    for size, batch in ((0, "shuffled"), (4, "shuffled"), (8, "shuffled"), (2, "global")):
        assert not NormalizationBatch(batch, virtual_workers=4, shuffle_groups=size).needs_images
    with pytest.raises(ValueError, match="virtual_workers=4 and shuffle_groups=2 depends .*pooler"):
        convert_roi_batchnorm(
            torch.nn.BatchNorm2d(3), "shuffled", virtual_workers=4, shuffle_groups=2
        )


def test_a_process_group_of_the_users_is_not_cut_into_groups(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="roi_head: process_group was given, .* is 2; use one"):
            RoILayout(
                NormalizationBatch("shuffled", shuffle_groups=2), "roi_head", dist.group.WORLD
            )
    finally:
        dist.destroy_process_group()
