"""Groups of consecutive ranks: their members, and that they are made once."""

from datetime import timedelta

import torch.distributed as dist

from bn_detect.distributed.neighbours import neighbours


def on_rank(me: int, size: int) -> dict:
    pair = neighbours(2, timedelta(seconds=29))
    return {
        "pair": dist.get_process_group_ranks(pair),
        "alone": dist.get_process_group_ranks(neighbours(1)),
        "made once": pair is neighbours(2),
        "world": neighbours(size) is dist.group.WORLD,
    }


def test_four_ranks(four_ranks):
    for me, result in enumerate(r["neighbours"] for r in four_ranks):
        assert result == {
            "pair": [0, 1] if me < 2 else [2, 3],
            "alone": [me],
            "made once": True,
            "world": True,
        }


def test_one_process_has_no_group():
    assert neighbours(1) is None
