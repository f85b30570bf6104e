"""The collectives of the package, each wrapped once.

Every function works without a process group (the process then counts as the only rank), on gloo
with CPU tensors and on NCCL with CUDA tensors. Every rank of the group must call them, in the same
order, also when it has no RoIs.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def default_group() -> dist.ProcessGroup | None:
    """Return the group of all ranks, or None where there is only this process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def world_size(process_group: dist.ProcessGroup | None) -> int:
    """Return the number of ranks in the group; 1 for None."""
    return 1 if process_group is None else dist.get_world_size(process_group)


def rank(process_group: dist.ProcessGroup | None) -> int:
    """Return this process's rank in the group; 0 for None."""
    return 0 if process_group is None else dist.get_rank(process_group)


def all_reduce_sum(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Sum `tensor` (same shape on each rank) over the group, in place, and return it."""
    if process_group is not None:
        dist.all_reduce(tensor, group=process_group)
    return tensor


def all_gather_int(
    value: int, device: torch.device, process_group: dist.ProcessGroup | None
) -> list[int]:
    """Return the `value` of every rank, in the order of the ranks.

    Args:
        device: of the tensors that the backend takes (a CUDA device for NCCL).
    """
    if process_group is None:
        return [value]
    values = torch.zeros(world_size(process_group), dtype=torch.int64, device=device)
    values[rank(process_group)] = value
    gathered: list[int] = all_reduce_sum(values, process_group).tolist()
    return gathered


def all_to_all_rows(
    x: Tensor,
    send: Sequence[int],
    receive: Sequence[int],
    process_group: dist.ProcessGroup | None,
) -> Tensor:
    """Send the first `send[0]` rows of `x` to rank 0, the next `send[1]` to rank 1, ...

    Args:
        x: (sum(send), ...), the same trailing shape and dtype on every rank.
        send, receive: rows to and from each rank; zeros are fine.

    Returns:
        (sum(receive), ...): the rows received, in the order of their source ranks.
    """
    if process_group is None:
        return x
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), list(receive), list(send), group=process_group)
    return out
