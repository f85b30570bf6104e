"""Moments of many batches, pooled (Chan, Golub & LeVeque 1983)."""

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.collectives import all_reduce_sum, rank, world_size

# Values per chunk: a chunk and its temporaries stay in a core's cache on CPU, and keep a GPU busy.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 23}


class Moments:
    """Count, mean and M2 (the sum of squares about the mean) per channel, all float64.

    Attributes:
        count: values per channel. mean, m2: (channels,).
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)

    def merge(self, count: int, mean: Tensor, m2: Tensor) -> None:
        """Pool with the values that have these moments."""
        if not count:
            return
        total = self.count + count
        delta = mean - self.mean
        self.m2 += delta.square().mul_(self.count * (count / total)).add_(m2)
        self.mean += delta.mul_(count / total)
        self.count = total


class BatchedMoments:
    """Moments over all batches, and how much of M2 is within batches.

    Attributes:
        total: over all finished batches.
        within: (channels,) the sum of the M2 of the batches.
        batches: finished ones that had values.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.total, self.within = (
            Moments(channels, device),
            torch.zeros(channels, dtype=torch.float64, device=device),
        )
        self.batches = 0
        self._batch = Moments(channels, device)

    def add(self, x: Tensor) -> None:
        """Pool the values of one call in the batch at hand; x (N, C, ...), N may be 0."""
        if x.numel():
            self.add_moments(x.numel() // x.shape[1], *moments(x))

    def add_moments(self, count: int, mean: Tensor, m2: Tensor) -> None:
        """Pool values with these moments in the batch at hand."""
        self._batch.merge(count, mean, m2)

    def end_batch(self) -> None:
        batch = self._batch
        if batch.count:
            self.total.merge(batch.count, batch.mean, batch.m2)
            self.within += batch.m2
            self.batches += 1
            self._batch = Moments(len(batch.mean), batch.mean.device)

    def standard_error(self) -> Tensor:
        """(channels,) of the mean, in standard deviations, from how far the batches' means are
        apart: right also where the values of a batch are correlated. NaN for fewer than 2 batches.
        """
        if self.batches < 2:
            return torch.full_like(self.within, torch.nan)
        between = (self.total.m2 - self.within).clamp(min=0) / (self.batches - 1)
        return (between / self.total.m2.clamp(min=1e-300)).sqrt()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and M2 of each channel, (C,) float64 each; x (N, C, ...) float, not empty.

    In float32 at least, about a mean that is itself corrected for its rounding: exact to about 1e-7
    of the variance, however large the mean is against it.
    """
    samples, channels = x.shape[:2]
    accurate = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x[0, 0].numel() == 1:  # one value per sample and channel: reduce over the samples
        rows, groups = x.reshape(samples, channels).to(torch.float64).t(), 1
    else:
        rows, groups = x.reshape(samples * channels, -1), samples
    size = rows.shape[1]
    step = max(1, _CHUNK.get(x.device.type, 1 << 18) // size)
    mean = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    m2 = torch.empty_like(mean)
    for start in range(0, len(rows), step):
        values = rows[start : start + step].to(accurate)
        center = values.mean(1, keepdim=True)
        values = values - center
        rest = values.mean(1, dtype=torch.float64)
        mean[start : start + step] = rest + center[:, 0]
        squares = values.square_().sum(1).double()
        m2[start : start + step] = (squares - size * rest.square()).clamp_(min=0)
    mean, m2 = mean.view(groups, channels), m2.view(groups, channels)
    center = mean.mean(0)
    return center, m2.sum(0) + size * (mean - center).square().sum(0)


def pool_over_ranks(found: list[BatchedMoments], process_group: dist.ProcessGroup | None) -> None:
    """Make every rank hold the moments of all ranks, the same to the bit. One collective."""
    if process_group is None or not found:
        return
    packed = torch.cat([_packed(each) for each in found])
    # Gathered, not summed: a sum would have to carry E[x^2], which loses what Chan's formula keeps.
    rows = packed.new_zeros(world_size(process_group), len(packed))
    rows[rank(process_group)] = packed
    all_reduce_sum(rows, process_group)
    for each, parts in zip(
        found, rows.split([2 + 3 * len(f.within) for f in found], dim=1), strict=True
    ):
        _unpack(each, parts)


def _packed(found: BatchedMoments) -> Tensor:
    """(2 + 3C,) float64"""
    counts = found.within.new_tensor([found.total.count, found.batches])
    return torch.cat([counts, found.total.mean, found.total.m2, found.within])


def _unpack(found: BatchedMoments, ranks: Tensor) -> None:
    """Set `found` to the pooled moments of all ranks, (ranks, 2 + 3C)."""
    channels = len(found.within)
    counts, mean, m2, within = ranks.split([2, channels, channels, channels], dim=1)
    found.total = Moments(channels, ranks.device)
    for (count, _), *moments_of_rank in zip(counts.tolist(), mean, m2, strict=True):
        found.total.merge(round(count), *moments_of_rank)
    found.batches = round(counts[:, 1].sum().item())
    found.within = within.sum(0)
