"""The collectives without a process group, and the group that is found by default."""

import torch
import torch.distributed as dist

from bn_detect.distributed.collectives import (
    all_gather_int,
    all_reduce_sum,
    all_to_all_rows,
    default_group,
    rank,
    world_size,
)

CPU = torch.device("cpu")


def test_one_process_is_a_world_of_its_own():
    x = torch.randn(3, 2)
    assert default_group() is None
    assert (rank(None), world_size(None)) == (0, 1)
    assert all_gather_int(7, CPU, None) == [7]
    assert all_reduce_sum(x, None) is x
    assert torch.equal(all_to_all_rows(x, [3], [3], None), x)


def on_rank(me: int, size: int) -> dict:
    """Use each on 4 ranks: r sends r rows to rank 0, one to rank 1, none to the others."""
    group = default_group()
    receive = [other if me == 0 else int(me == 1) for other in range(size)]
    rows = torch.full((me + 1, 2), float(me)).t().contiguous().t()
    return {
        "default": group is dist.group.WORLD,
        "rank": (rank(group), world_size(group)),
        "gathered": all_gather_int(10 + me, CPU, group),
        "sum": all_reduce_sum(torch.tensor([me, 1]), group).tolist(),
        "rows": all_to_all_rows(rows, [me, 1, 0, 0], receive, group)[:, 0].tolist(),
    }


def test_four_ranks(four_ranks):
    results = [r["collectives"] for r in four_ranks]
    for me, r in enumerate(results):
        assert r["default"] and r["rank"] == (me, 4)
        assert r["gathered"] == [10, 11, 12, 13]
        assert r["sum"] == [6, 4]
    assert [r["rows"] for r in results] == [[1, 2, 2, 3, 3, 3], [0, 1, 2, 3], [], []]


def test_a_world_of_one_needs_no_group(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert default_group() is None
    finally:
        dist.destroy_process_group()
