"""Process groups of consecutive ranks, such as those of one node."""

import weakref
from datetime import timedelta

import torch.distributed as dist

from .collectives import default_group, world_size

# World -> size -> this rank's group. A world that is made after this one was destroyed has groups
# of its own.
_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[int, dist.ProcessGroup]]
_groups = weakref.WeakKeyDictionary()


def neighbours(ranks: int, timeout: timedelta | None = None) -> dist.ProcessGroup | None:
    """Return this rank's group when all ranks are cut into runs of `ranks` consecutive ones.

    The first call with a size makes the groups, a collective over all ranks: each rank must call
    with the same sizes in the same order. Later calls only look up.

    Args:
        ranks: size of a group, a divisor of the number of ranks.
        timeout: of the collectives of groups made in this call; None: the backend's.

    Returns:
        The group, or None where there is only this process.
    """
    world = default_group()
    if world is None or ranks == world_size(world):
        return world
    of_world = _groups.setdefault(world, {})
    if ranks not in of_world:
        of_world[ranks], _ = dist.new_subgroups(ranks, timeout=timeout)
    return of_world[ranks]
