"""Process groups of consecutive ranks, say those of one node."""

import weakref
from datetime import timedelta

import torch.distributed as dist

from .collectives import default_group, world_size

# By the world they belong to: another world, after this one is destroyed, has groups of its own.
_neighbours: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def neighbours(ranks: int, timeout: timedelta | None = None) -> dist.ProcessGroup | None:
    """This rank's group when all ranks are cut into runs of `ranks` consecutive ones.

    Groups are made once per process and world; then this is a look-up. Making them is a collective
    over all ranks: each must come here first with the same sizes in the same order.

    Args:
        ranks: a divisor of the number of ranks; all of them give the group of all ranks.
        timeout: of the groups' collectives, if they are made now; default: the backend's.

    Returns:
        The group; None where there is only this process.
    """
    world = default_group()
    if ranks == world_size(world):
        return world
    made = _neighbours.setdefault(world, {})
    if ranks not in made:
        made[ranks], _ = dist.new_subgroups(ranks, timeout=timeout)
    return made[ranks]
