"""RoIs in groups."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Partition(NamedTuple):
    """group (R,) int64 in [0, num_groups) of this process's RoIs; the groups span `process_group`
    (None: they are the process's own)."""

    group: Tensor
    num_groups: int
    process_group: dist.ProcessGroup | None


def by_image(
    group_of_image: Iterable[int],
    rois_per_image: Sequence[int],
    num_groups: int,
    device: torch.device,
) -> Partition:
    """Each RoI in the group of its image; groups are this process's own."""
    groups, counts = (
        torch.tensor(list(numbers), dtype=torch.int64)
        for numbers in (group_of_image, rois_per_image)
    )
    return Partition(torch.repeat_interleave(groups, counts).to(device), num_groups, None)


def runs_of_images(workers: int, per_worker: int, size: int) -> tuple[list[int], int]:
    """The group of each image when `size` consecutive images of a worker are one, and how many
    groups that are."""
    groups_per_worker = max(1, -(-per_worker // size))  # one empty group where no image is
    groups = [
        i // per_worker * groups_per_worker + i % per_worker // size
        for i in range(workers * per_worker)
    ]
    return groups, workers * groups_per_worker
