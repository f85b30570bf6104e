"""RoI shuffling by moving features (Wu & Johnson 2021, Section 6.2).

`shuffle_rois` draws one random permutation of the RoIs of all workers and deals them out in
consecutive parts of (almost) equal size. `unshuffle_rois` brings rows back to where they came from.
Each is one `all_to_all_single` and one local reordering, so a worker sends its own rows and
receives its new ones: no rank ever holds more than its share.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import all_gather_int, all_to_all_rows, default_group, rank, world_size


def balanced_shares(total: int, parts: int) -> list[int]:
    """Sizes of `parts` consecutive shares of `total`, which differ by one at most."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def balanced_owner(total: int, parts: int) -> Tensor:
    """(total,) int64: which of the `parts` consecutive balanced shares each position lies in."""
    return torch.repeat_interleave(
        torch.arange(parts), torch.tensor(balanced_shares(total, parts), dtype=torch.int64)
    )


def shuffled_owner(total: int, parts: int, generator: torch.Generator) -> Tensor:
    """(total,) int64: the part that each RoI is dealt to, by the draw of `plan_shuffle`."""
    # Position p of the shuffled order holds RoI permutation[p], which so goes to p's owner.
    permutation = torch.randperm(total, generator=generator)
    owner = torch.empty_like(permutation)
    owner[permutation] = balanced_owner(total, parts)
    return owner


@dataclass(frozen=True)
class ShufflePlan:
    """Where the rows of one shuffle went.

    Attributes:
        permutation: (R,) int64 on the CPU, R over all workers: position p of the shuffled order
            holds RoI `permutation[p]`, RoIs being numbered worker by worker. The same on every
            rank.
        send, receive: rows this rank sends to and receives from each rank.
        send_order: (sum(send),) this rank's own rows, in the order they are sent.
        positions: (sum(receive),) int64 on the CPU, the position in the shuffled order of each row
            received. Rows stay as they arrive, worker by worker: within a batch order is nothing.
    """

    permutation: Tensor
    send: tuple[int, ...]
    receive: tuple[int, ...]
    send_order: Tensor
    positions: Tensor
    process_group: dist.ProcessGroup | None = None


def plan_shuffle(
    counts: list[int],
    generator: torch.Generator,
    device: torch.device,
    process_group: dist.ProcessGroup | None,
) -> ShufflePlan:
    """The plan for `counts[w]` RoIs on worker w; every rank computes its own view of it."""
    workers, me = world_size(process_group), rank(process_group)
    total = sum(counts)
    permutation = torch.randperm(total, generator=generator)
    owner = balanced_owner(total, workers)  # of each position in the shuffled order
    source = torch.repeat_interleave(torch.arange(workers), torch.tensor(counts))[permutation]

    start = sum(counts[:me])
    mine = source == me  # positions filled by rows of this worker, in ascending order
    send_order = permutation[mine] - start
    send = torch.bincount(owner[mine], minlength=workers)

    # Rows arrive grouped by source and, within a source, by position.
    share = torch.nonzero(owner == me).flatten()
    receive = torch.bincount(source[share], minlength=workers)
    return ShufflePlan(
        permutation=permutation,
        send=tuple(send.tolist()),
        receive=tuple(receive.tolist()),
        send_order=send_order.to(device),
        positions=share[torch.argsort(source[share], stable=True)],
        process_group=process_group,
    )


def shuffle_rois(
    x: Tensor, generator: torch.Generator, process_group: dist.ProcessGroup | None = None
) -> tuple[Tensor, ShufflePlan]:
    """Deal the RoIs of all workers out at random, in shares equal to within one RoI.

    Args:
        x: (R, ...) this worker's rows; R may differ between workers and be 0.
        generator: CPU generator in the same state on every rank.
        process_group: default: all ranks; without any, a permutation of this process's rows.

    Returns:
        This worker's share of the shuffled rows, in the order of `plan.positions`, differentiable
        with respect to `x`, and the plan.
    """
    process_group = process_group or default_group()
    counts = all_gather_int(x.shape[0], x.device, process_group)
    plan = plan_shuffle(counts, generator, x.device, process_group)
    return _Exchange.apply(x, plan, False), plan


def unshuffle_rois(y: Tensor, plan: ShufflePlan) -> Tensor:
    """Return rows to the workers and the order they had before `shuffle_rois`.

    Args:
        y: (R', ...) one row per shuffled RoI of this worker; any trailing shape and dtype.

    Returns:
        (R, ...), differentiable with respect to `y`.

    Raises:
        ValueError: `y` does not have the number of rows that the plan gave this worker.
    """
    if y.shape[0] != len(plan.positions):
        raise ValueError(
            f"unshuffle_rois: got {y.shape[0]} rows, but the plan gave this worker "
            f"{len(plan.positions)}"
        )
    return _Exchange.apply(y, plan, True)


class _Exchange(torch.autograd.Function):
    """Apply the plan, or its inverse; the backward is the other one. Twice differentiable."""

    @staticmethod
    def forward(ctx, x: Tensor, plan: ShufflePlan, inverse: bool) -> Tensor:
        ctx.plan, ctx.inverse = plan, inverse
        # index_select copies whole rows, which indexing does not.
        if inverse:
            rows = all_to_all_rows(x, plan.receive, plan.send, plan.process_group)
            return rows.index_select(0, torch.argsort(plan.send_order))
        rows = x.index_select(0, plan.send_order)
        return all_to_all_rows(rows, plan.send, plan.receive, plan.process_group)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Exchange.apply(grad, ctx.plan, not ctx.inverse), None, None
