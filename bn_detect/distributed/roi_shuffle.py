"""RoI shuffling by moving features (Wu & Johnson 2021, Section 6.2).

`shuffle_rois` draws one random permutation of the RoIs of all workers and deals them out in
consecutive shares of almost equal size. `unshuffle_rois` returns rows to where they came from.
Each is one `all_to_all_single` and one local reordering: a worker sends its own rows and receives
its new ones, and no rank ever holds more than its share.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import all_gather_int, all_to_all_rows, default_group, rank, world_size


def balanced_shares(total: int, parts: int) -> list[int]:
    """Return the sizes of `parts` consecutive shares of `total`, which differ by one at most."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def balanced_owner(total: int, parts: int) -> Tensor:
    """Return (total,) int64: which of `parts` consecutive balanced shares each position is in."""
    return torch.repeat_interleave(
        torch.arange(parts), torch.tensor(balanced_shares(total, parts), dtype=torch.int64)
    )


def shuffled_owner(total: int, parts: int, generator: torch.Generator) -> Tensor:
    """Return (total,) int64: the part that each RoI is dealt to, drawn as `plan_shuffle` does."""
    # Position p of the shuffled order holds RoI permutation[p], which thus goes to p's owner.
    permutation = torch.randperm(total, generator=generator)
    owner = torch.empty_like(permutation)
    owner[permutation] = balanced_owner(total, parts)
    return owner


@dataclass(frozen=True)
class ShufflePlan:
    """The route of every row in one shuffle.

    Attributes:
        permutation: (R,) int64 on the CPU, R over all workers: position p of the shuffled order
            holds RoI `permutation[p]`, RoIs being numbered worker by worker. The same on every
            rank.
        send, receive: rows this rank sends to and receives from each rank.
        send_order: (sum(send),) this rank's own rows, in the order they are sent.
        positions: (sum(receive),) int64 on the CPU, the position in the shuffled order of each row
            received. Rows stay in the order of arrival, worker by worker; BatchNorm does not see
            the order.
        process_group: the workers; None: this process alone.
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
    """Return this rank's plan for a shuffle of `counts[w]` RoIs on each worker w."""
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
    """Deal out the RoIs of all workers at random, in shares that differ by one RoI at most.

    Args:
        x: (R, ...) this worker's rows; R may differ between workers and be 0.
        generator: CPU generator in the same state on every rank.
        process_group: the workers; None: all ranks. Where there is only this process, its rows are
            permuted.

    Returns:
        This worker's share of the shuffled rows, in the order of `plan.positions`, differentiable
        with respect to `x`, and the plan.
    """
    process_group = process_group or default_group()
    counts = all_gather_int(x.shape[0], x.device, process_group)
    plan = plan_shuffle(counts, generator, x.device, process_group)
    return _exchange(x, plan, inverse=False), plan


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
    return _exchange(y, plan, inverse=True)


def _exchange(x: Tensor, plan: ShufflePlan, *, inverse: bool) -> Tensor:
    moved: Tensor = _Exchange.apply(x, plan, inverse)
    return moved


class _Exchange(torch.autograd.Function):
    """Apply a plan or its inverse; the backward applies the other one. Twice differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: ShufflePlan, inverse: bool) -> Tensor:
        ctx.plan, ctx.inverse = plan, inverse
        # index_select copies whole rows, which indexing does not.
        if inverse:
            rows = all_to_all_rows(x, plan.receive, plan.send, plan.process_group)
            return rows.index_select(0, torch.argsort(plan.send_order))
        rows = x.index_select(0, plan.send_order)
        return all_to_all_rows(rows, plan.send, plan.receive, plan.process_group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(grad, ctx.plan, inverse=not ctx.inverse), None, None
