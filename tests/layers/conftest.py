"""One start of 2, 3 and 4 ranks for all of this folder: starting them takes longest."""

import pytest

from ..helpers.ranks import run_ranks
from . import test_groups_on_ranks, test_heads_on_ranks


def _on_rank(rank: int, world_size: int) -> dict:
    return {
        "groups": test_groups_on_ranks.on_rank(rank, world_size),
        "heads": test_heads_on_ranks.on_rank(rank, world_size),
    }


@pytest.fixture(scope="session", params=[2, 3, 4], ids="{} ranks".format)
def ranks(request) -> list[dict]:
    """What `on_rank` of each test module gives on each rank."""
    return run_ranks(_on_rank, request.param)
