"""Exact moments of many batches, pooled by the formula of Chan, Golub & LeVeque (1983)."""

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.collectives import all_reduce_sum, rank, world_size

# Values per chunk: a chunk and its temporaries stay in a core's cache on CPU, and keep a GPU busy.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 23}


class Moments:
    """Moments per channel of a set of values.

    Attributes:
        count: values per channel.
        mean: (channels,) float64.
        m2: (channels,) float64, the sum of squared distances from the mean.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)

    def merge(self, count: int, mean: Tensor, m2: Tensor) -> None:
        """Add the values that have these moments."""
        if not count:
            return
        total = self.count + count
        delta = mean - self.mean
        self.m2 += delta.square().mul_(self.count * (count / total)).add_(m2)
        self.mean += delta.mul_(count / total)
        self.count = total


class BatchedMoments:
    """Moments over all batches, and the part of M2 that lies within batches.

    Attributes:
        total: moments over all finished batches.
        within: (channels,) the sum of the M2 of the batches.
        batches: how many finished batches had values.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.total = Moments(channels, device)
        self.within = torch.zeros(channels, dtype=torch.float64, device=device)
        self.batches = 0
        self._batch = Moments(channels, device)

    def add(self, x: Tensor) -> None:
        """Add the values of one call to the current batch; x (N, C, ...), N may be 0."""
        if x.numel():
            self.add_moments(x.numel() // x.shape[1], *moments(x))

    def add_moments(self, count: int, mean: Tensor, m2: Tensor) -> None:
        """Add values with these moments to the current batch."""
        self._batch.merge(count, mean, m2)

    def end_batch(self) -> None:
        """Finish the current batch; the next values belong to another one."""
        batch = self._batch
        if batch.count:
            self.total.merge(batch.count, batch.mean, batch.m2)
            self.within += batch.m2
            self.batches += 1
            self._batch = Moments(len(batch.mean), batch.mean.device)

    def standard_error(self) -> Tensor:
        """Return the standard error of the mean, (channels,) in standard deviations.

        It is estimated from the spread of the batches' means, and so is right also where the values
        of a batch are correlated. NaN for fewer than 2 batches.
        """
        if self.batches < 2:
            return torch.full_like(self.within, torch.nan)
        between = (self.total.m2 - self.within).clamp(min=0) / (self.batches - 1)
        return (between / self.total.m2.clamp(min=1e-300)).sqrt()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and M2 of each channel, (C,) float64 each; x (N, C, ...) float, not empty.

    Computed in float32 or better, about a mean that is itself corrected for its rounding: exact to
    about 1e-7 of the variance, however large the mean is against it.
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


def pool_over_ranks(
    populations: list[BatchedMoments], process_group: dist.ProcessGroup | None
) -> None:
    """Replace the moments by those of all ranks, the same to the bit on each. One collective."""
    if process_group is None or not populations:
        return
    packed = torch.cat([_pack(each) for each in populations])
    # Gathered, not summed: a sum would have to carry E[x^2], which loses what Chan's formula keeps.
    rows = packed.new_zeros(world_size(process_group), len(packed))
    rows[rank(process_group)] = packed
    all_reduce_sum(rows, process_group)
    parts = rows.split([2 + 3 * len(each.within) for each in populations], dim=1)
    for each, of_ranks in zip(populations, parts, strict=True):
        _unpack(each, of_ranks)


def _pack(population: BatchedMoments) -> Tensor:
    """Return the moments as one tensor, (2 + 3C,) float64."""
    total, within = population.total, population.within
    counts = within.new_tensor([total.count, population.batches])
    return torch.cat([counts, total.mean, total.m2, within])


def _unpack(population: BatchedMoments, of_ranks: Tensor) -> None:
    """Set `population` to the pooled moments of all ranks, packed as (ranks, 2 + 3C)."""
    channels = len(population.within)
    counts, mean, m2, within = of_ranks.split([2, channels, channels, channels], dim=1)
    population.total = Moments(channels, of_ranks.device)
    for (count, _), *moments_of_rank in zip(counts.tolist(), mean, m2, strict=True):
        population.total.merge(round(count), *moments_of_rank)
    population.batches = round(counts[:, 1].sum().item())
    population.within = within.sum(0)
