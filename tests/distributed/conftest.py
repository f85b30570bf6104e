"""One start of 4 ranks for all of this folder: starting them takes longer than what they do."""

import pytest

from ..helpers.ranks import run_ranks
from . import test_collectives, test_neighbours, test_roi_shuffle


def _on_rank(rank: int, world_size: int) -> dict:
    return {
        "collectives": test_collectives.on_rank(rank, world_size),
        "neighbours": test_neighbours.on_rank(rank, world_size),
        "shuffle": test_roi_shuffle.on_rank(rank, world_size),
    }


@pytest.fixture(scope="session")
def four_ranks() -> list[dict]:
    """What `on_rank` of each test module gives on each of 4 ranks."""
    return run_ranks(_on_rank, 4)
