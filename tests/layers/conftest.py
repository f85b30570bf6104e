"""One start of 4 processes for all of this folder: starting them takes longest."""

import pytest

from ..helpers.ranks import run_worlds
from . import test_groups_on_ranks, test_heads_on_ranks, test_shuffle_groups
from .layouts import test_image_layout


def _on_rank(rank: int, world_size: int) -> dict:
    return {
        "groups": test_groups_on_ranks.on_rank(rank, world_size),
        "heads": test_heads_on_ranks.on_rank(rank, world_size),
        "images": test_image_layout.on_rank(rank, world_size),
        "shuffle groups": test_shuffle_groups.on_rank(rank, world_size),
    }


@pytest.fixture(scope="session")
def worlds() -> dict[int, list[dict]]:
    """By world size, what `on_rank` of each test module gives on each rank."""
    return run_worlds(_on_rank, [2, 3, 4], timeout=500)


@pytest.fixture(params=[2, 3, 4], ids="{} ranks".format)
def ranks(request, worlds) -> list[dict]:
    """What each of 2, 3 and 4 ranks gives."""
    return worlds[request.param]
