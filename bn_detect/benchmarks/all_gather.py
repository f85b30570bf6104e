"""A reference for the benchmarks only: RoI shuffling as it is publicly known, by all-gather.

Every rank gathers the padded RoI features of all ranks and picks its share of a common permutation;
the gradients of everything gathered are summed over the ranks, of which each keeps its own rows.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.collectives import all_gather_int, rank, world_size
from ..distributed.roi_shuffle import balanced_shares


class _GatherRows(torch.autograd.Function):
    """(R, ...) on each rank -> (sum of R, ...) on all; gradients are reduced back."""

    @staticmethod
    def forward(ctx, x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.counts, ctx.group = counts, group
        padded = x.new_zeros((max(counts), *x.shape[1:]))
        padded[: len(x)] = x
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        me = rank(ctx.group)
        return grad.split(ctx.counts)[me], None, None


def apply_after_all_gather(
    layers: Callable[[Tensor], Tensor],
    x: Tensor,
    generator: torch.Generator,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Apply `layers` to shuffled RoIs and move the outputs back, as `apply_to_moved_rois` does.

    Args:
        x: (R, ...) this rank's RoI features.
        generator: in the same state on every rank.
    """
    counts = all_gather_int(len(x), x.device, group)
    total, me = sum(counts), rank(group)
    permutation = torch.randperm(total, generator=generator).to(x.device)
    shares = balanced_shares(total, world_size(group))
    mine = permutation.split(shares)[me]
    y = layers(_GatherRows.apply(x, counts, group)[mine])
    shuffled = _GatherRows.apply(y, shares, group)
    restored = torch.empty_like(shuffled).index_copy(0, permutation, shuffled)
    return restored.split(counts)[me]
