"""The groups of RoIs that are normalized together, and what a layer needs to sum over them."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Partition:
    """This process's RoIs in groups, made once per head and forward for all layers of the head.

    Layers sum over each group in the order given here, so they need no atomics, no counting and no
    copy to the host, and the same input gives the same bits.

    Args:
        group: (R,) int64 in [0, num_groups), the group of each RoI.
        process_group: the groups span its ranks; None: they are this process's own.
        device: where the layers work; default: that of `group`. Give a `group` on the CPU together
            with a `device` to sort on the host and copy once.
        rois: RoIs of each group over all ranks, where groups span ranks and every rank knows it.

    Attributes:
        group: as above, on the device.
        order: (R,) int64, the RoIs of group 0 in order, then those of group 1, and so on.
        starts, sizes: (num_groups,) int64, where each group starts in `order`, and its RoIs on this
            process.
        divisor: (num_groups, 1), the same numbers, but at least 1.
        rows, groups: (2, R) and (3, num_groups), the tensors that hold those above.
        rois: RoIs of each group over all ranks, on the host; None where only the layers' reductions
            tell, or where `group` was not on the CPU.
    """

    def __init__(
        self,
        group: Tensor,
        num_groups: int,
        process_group: dist.ProcessGroup | None = None,
        *,
        device: torch.device | None = None,
        rois: Sequence[int] | None = None,
    ) -> None:
        self.process_group = process_group
        if num_groups == 1:
            in_order, order = group, torch.arange(len(group), device=group.device)
        else:
            in_order, order = group.sort(stable=True)
        ends = torch.arange(num_groups + 1, device=group.device)
        starts = torch.searchsorted(in_order, ends)
        sizes = starts[1:] - starts[:-1]
        if rois is None and process_group is None and group.device.type == "cpu":
            rois = sizes.tolist()
        self.rois = None if rois is None else tuple(rois)
        packed = torch.cat([group, order, starts[:-1], sizes, sizes.clamp(min=1)])
        if device is not None and device != packed.device:
            if device.type == "cuda":
                packed = packed.pin_memory()  # else the host waits for the copy
            packed = packed.to(device, non_blocking=True)
        split = 2 * len(group)
        rows = packed[:split].view(2, -1) if split else packed.new_empty((2, 0))
        self._keep(rows, packed[split:].view(3, -1))

    def _keep(self, rows: Tensor, groups: Tensor) -> None:
        # Views are made once, as making one takes a CPU as long as adding two small tensors.
        self.rows, self.groups = rows, groups
        self.group, self.order = rows.unbind()
        self.starts, self.sizes, divisor = groups.unbind()
        self.divisor = divisor[:, None]

    @classmethod
    def of_tensors(
        cls, rows: Tensor, groups: Tensor, process_group: dist.ProcessGroup | None
    ) -> "Partition":
        """Return the partition that has these `rows` and `groups`."""
        partition = cls.__new__(cls)
        partition._keep(rows, groups)
        partition.process_group, partition.rois = process_group, None
        return partition

    @classmethod
    def one_group(
        cls,
        rois: int,
        device: torch.device,
        process_group: dist.ProcessGroup | None = None,
    ) -> "Partition":
        """Return one group of all RoIs: of this process's, or of those of all ranks."""
        group = torch.zeros(rois, dtype=torch.int64)
        return cls(group, 1, process_group, device=device)

    @property
    def num_groups(self) -> int:
        """The number of groups, empty ones included."""
        return self.groups.shape[1]

    def may_hold_single_values(self, positions: int) -> bool:
        """Return whether a group may hold one value per channel, with so many positions a RoI."""
        return positions == 1 and (self.rois is None or 1 in self.rois)


def by_image(
    group_of_image: Iterable[int],
    rois_per_image: Sequence[int],
    num_groups: int,
    device: torch.device,
) -> Partition:
    """Put each RoI into the group of its image; the groups are this process's own."""
    groups, counts = (
        torch.tensor(list(numbers), dtype=torch.int64)
        for numbers in (group_of_image, rois_per_image)
    )
    return Partition(torch.repeat_interleave(groups, counts), num_groups, device=device)


def runs_of_images(workers: int, per_worker: int, size: int) -> tuple[list[int], int]:
    """Group `size` consecutive images of each worker.

    Returns:
        The group of each image, and the number of groups; a worker without images has one group.
    """
    groups_per_worker = max(1, -(-per_worker // size))
    groups = [
        i // per_worker * groups_per_worker + i % per_worker // size
        for i in range(workers * per_worker)
    ]
    return groups, workers * groups_per_worker
