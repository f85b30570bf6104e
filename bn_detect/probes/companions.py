"""Companions that take the place of a RoI's own: as many, and as many of them foreground."""

import torch
from torch import Tensor

from .rois import RoIs


def replacements(
    rois: RoIs,
    members: Tensor,
    pool: RoIs,
    source: Tensor,
    generator: torch.Generator,
    *,
    fill: bool,
    never: Tensor | None = None,
) -> Tensor | None:
    """A RoI of `pool` for each of `members`, of the same kind (foreground or background).

    Args:
        members: (M,) indices into `rois` of the companions to replace.
        source: (B,) the image of `pool` that replaces each image of `rois`. RoIs are drawn from it
            without replacement.
        fill: where that image has too few of a kind, take them from other images of `pool`: unused
            ones if there are enough, else the same ones again.
        never: (len(pool),) bool, RoIs that must not be drawn.

    Returns:
        (M,) indices into `pool`; None where there is no such choice.
    """
    picks = torch.full_like(members, -1)
    used = torch.zeros(len(pool), dtype=torch.bool) if never is None else never.clone()
    for kind in (True, False):
        of_kind = pool.foreground == kind
        for image in rois.image[members].unique():
            wanted = (rois.image[members] == image) & (rois.foreground[members] == kind)
            there = of_kind & ~used & (pool.image == source[image])
            rows = wanted.nonzero()[:, 0]
            drawn = _shuffled(there, generator)[: len(rows)]
            picks[rows[: len(drawn)]] = drawn
            used[drawn] = True
        rows = ((picks < 0) & (rois.foreground[members] == kind)).nonzero()[:, 0]
        if not len(rows):
            continue
        if not fill or not of_kind.any():
            return None
        others = _shuffled(of_kind & ~used, generator)
        again = _shuffled(of_kind, generator)
        again = again.repeat(-(-len(rows) // len(again)))
        drawn = torch.cat([others, again])[: len(rows)]
        picks[rows] = drawn
        used[drawn] = True
    return picks


def same_place(rois: RoIs, index: int, pool: RoIs) -> Tensor:
    """(len(pool),) bool: the RoIs of `pool` with the image number and the box of one of `rois`."""
    same_box = (pool.boxes == rois.boxes[index]).all(1).cpu()
    return same_box & (pool.image == rois.image[index])


def _shuffled(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """The indices where `chosen`, in random order."""
    indices = chosen.nonzero()[:, 0]
    return indices[torch.randperm(len(indices), generator=generator)]
