"""Bytes that each rank sends and receives in a step, by formula.

Counted are the payloads of the collectives, at their inputs (sent) and outputs (received), the
rank's own part included: what the backend is asked to do, not what the algorithm inside NCCL or
gloo makes of it. `Collective.wire` is that: what leaves a rank under a bandwidth-optimal (ring)
algorithm. Every rank has the same number of RoIs here, as it has with Detectron2's samplers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..layers import NormalizationBatch

WIDE = 8  # bytes of a float64 (statistics) and of an int64 (numbers of RoIs)


class Collective(NamedTuple):
    """One call as one rank sees it.

    kind: "all_reduce", "all_gather" or "all_to_all"; ranks: in its group; sent, received: bytes of
    its input and of its output on this rank.
    """

    kind: str
    ranks: int
    sent: int
    received: int

    @property
    def wire(self) -> float:
        """Bytes that leave this rank, and as many arrive (Patarasuk & Yuan 2009 for all-reduce).

        For all_to_all the expectation over the shuffles: of its rows, one in `ranks` stays.
        """
        share = (self.ranks - 1) / self.ranks
        return share * {"all_reduce": 2 * self.sent, "all_gather": self.received}.get(
            self.kind, self.sent
        )


@dataclass(frozen=True)
class Traffic:
    """The collectives of one rank in one training step, in the order they are called."""

    forward: tuple[Collective, ...]
    backward: tuple[Collective, ...]

    @property
    def collectives(self) -> tuple[Collective, ...]:
        return self.forward + self.backward

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.forward + other.forward, self.backward + other.backward)


def sent(collectives: Iterable[Collective]) -> int:
    """Bytes at their inputs."""
    return sum(c.sent for c in collectives)


def received(collectives: Iterable[Collective]) -> int:
    """Bytes at their outputs."""
    return sum(c.received for c in collectives)


def wire(collectives: Iterable[Collective]) -> float:
    """Bytes that leave a rank; see `Collective.wire`."""
    return sum(c.wire for c in collectives)


def statistics_bytes(
    batch: NormalizationBatch, processes: int, channels: int, layers: int
) -> Traffic:
    """A head whose statistics are reduced, as its normalization batch says (`Batch.cost`).

    Args:
        channels, layers: of its BN layers.
    """
    ranks, cost = batch.spans(processes), batch.kind.cost(channels, processes)
    once, there, back = ((_reduced(ranks, WIDE * n),) if n else () for n in cost)
    return Traffic(once + there * layers, back * layers)


def features_bytes(workers: int, rois: int, input_bytes: int, output_bytes: int) -> Traffic:
    """A head under "shuffled" with EXCHANGE "features": RoIs move there, outputs back.

    Args:
        workers: ranks that shuffle with one another.
        rois: of each rank.
        input_bytes, output_bytes: of a RoI's features before the head and of the head's output.
    """
    moves = lower_bound_bytes(workers, rois, input_bytes, output_bytes)
    return Traffic(_counts(workers) + moves.forward, moves.backward)


def lower_bound_bytes(workers: int, rois: int, input_bytes: int, output_bytes: int) -> Traffic:
    """Every RoI moved once to a random worker, its output back, and their gradients likewise.

    Arguments as in `features_bytes`. No way of moving features sends or receives less.
    """
    there = Collective("all_to_all", workers, rois * input_bytes, rois * input_bytes)
    back = Collective("all_to_all", workers, rois * output_bytes, rois * output_bytes)
    return Traffic((there, back), (back, there))


def all_gather_bytes(workers: int, rois: int, input_bytes: int, output_bytes: int) -> Traffic:
    """The known public way (`benchmarks.all_gather`): every rank gathers the RoIs of all.

    Arguments as in `features_bytes`. The gradients of everything gathered are summed over ranks.
    """
    there, back = (
        Collective("all_gather", workers, rois * each, workers * rois * each)
        for each in (input_bytes, output_bytes)
    )
    return Traffic(
        (*_counts(workers), there, back),
        (_reduced(workers, back.received), _reduced(workers, there.received)),
    )


def averaging_bytes(workers: int, channels: int, layers: int) -> tuple[Collective, ...]:
    """`average_running_statistics`: weight, mean and variance of all BN layers in one call."""
    return (_reduced(workers, WIDE * layers * (2 * channels + 1)),)


def precise_bn_bytes(
    workers: int, channels: int, layers: int, batches: int
) -> tuple[Collective, ...]:
    """A PreciseBN pass: whether a loader has ended, per batch, and each rank's moments at the end.

    Without what the heads' own BN layers send in these forwards: `statistics_bytes(...).forward`.
    """
    moments = WIDE * workers * layers * (3 * channels + 2)
    return _counts(workers) * batches + (_reduced(workers, moments),)


def _counts(workers: int) -> tuple[Collective, ...]:
    """One int64 of each rank to all (`collectives.all_gather_int`)."""
    return (_reduced(workers, WIDE * workers),)


def _reduced(workers: int, size: int) -> Collective:
    return Collective("all_reduce", workers, size, size)
