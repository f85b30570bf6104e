"""The helper itself: results by rank, and failures that end everything soon."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from .ranks import RankError, run_ranks, run_worlds


def _sum_of_ranks(rank: int, world_size: int, start: float) -> dict:
    total = torch.tensor([start + rank])
    dist.all_reduce(total)
    return {"rank": rank, "total": total}


def _fail_on_rank_1(rank: int, world_size: int) -> None:
    if rank == 1:
        raise KeyError("the reason")
    dist.barrier()  # never ends by itself


def _exit_on_rank_1(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(3)
    time.sleep(300)


def _sleep(rank: int, world_size: int) -> None:
    time.sleep(300)


def test_results_come_back_by_world_and_rank():
    worlds = run_worlds(_sum_of_ranks, [2, 1], 1.5)
    assert list(worlds) == [2, 1]
    for size, total in ((2, 4.0), (1, 1.5)):
        assert [result["rank"] for result in worlds[size]] == list(range(size))
        assert [result["total"].item() for result in worlds[size]] == [total] * size


def test_an_exception_on_a_rank_is_raised_here_with_its_traceback():
    with pytest.raises(KeyError, match="the reason") as error:
        run_ranks(_fail_on_rank_1, 2)
    assert isinstance(error.value.__cause__, RankError)
    assert "on rank 1" in str(error.value.__cause__)
    assert "_fail_on_rank_1" in str(error.value.__cause__)


def test_a_rank_that_dies_ends_the_others():
    start = time.monotonic()
    with pytest.raises(RankError, match=r"exit code by rank: \{1: 3\}"):
        run_ranks(_exit_on_rank_1, 2)
    assert time.monotonic() - start < 100


def test_ranks_that_do_not_end_are_killed():
    with pytest.raises(TimeoutError, match=r"ranks \[0\] had not ended after 2 s"):
        run_ranks(_sleep, 1, timeout=2)
