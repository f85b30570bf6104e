"""A model of the cost of shuffling on known links, by latency and bandwidth (docs/scaling.md)."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from tabulate import tabulate

from ..layers import NormalizationBatch
from .traffic_model import (
    Collective,
    Traffic,
    all_gather_bytes,
    features_bytes,
    lower_bound_bytes,
    sent,
    statistics_bytes,
    wire,
)


class Link(NamedTuple):
    """One worker's connection. latency: seconds of a message of no size, software included;
    bandwidth: bytes per second, each way."""

    name: str
    latency: float
    bandwidth: float


class Head(NamedTuple):
    """rois: of a worker; input_bytes, output_bytes: of each; channels, layers: of BatchNorm."""

    rois: int
    input_bytes: int
    output_bytes: int
    channels: int = 256
    layers: int = 4


# Bandwidth as specified: NVLink 4 (H100) 900 GB/s both ways together, InfiniBand NDR 400 Gb/s.
# Latencies are assumptions: round numbers of what small messages take between two workers.
LINKS = (
    Link("NVLink", 3e-6, 450e9),
    Link("InfiniBand", 5e-6, 50e9),
    Link("10 Gb Ethernet", 50e-6, 1.25e9),
)
# The paper's Mask R-CNN, 2 images a worker, float32: 4conv1fc box head and 4conv mask head.
PAPER = (
    Head(2 * 512, 4 * 256 * 7 * 7, 4 * 1024),
    Head(2 * 128, 4 * 256 * 14 * 14, 4 * 80 * 28 * 28),
)
PARAMETERS = 45_433_584  # trainable, of that model (R50-FPN, 80 classes)
NODE = 8  # workers
WORKERS = (8, 64, 1024)


def seconds(collectives: Iterable[Collective], link: Link) -> float:
    """Time of one collective after the other (Thakur, Rabenseifner & Gropp 2005, Sections 3 to 4).

    Latencies: 2 log2(W) for an all-reduce, log2(W) for an all-gather, W - 1 for an all_to_all.
    Bandwidth: that of `Collective.wire`. Neither conflicts on the network nor overlap are in it.
    """
    return sum(_messages(c) * link.latency + c.wire / link.bandwidth for c in collectives)


def _messages(collective: Collective) -> int:
    steps = math.ceil(math.log2(collective.ranks))
    others = collective.ranks - 1
    return {"all_reduce": 2 * steps, "all_gather": steps, "all_to_all": others}[collective.kind]


def by_statistics(workers: int, head: Head) -> Traffic:
    """One step of a head, "shuffled" between so many workers, EXCHANGE "statistics"."""
    return statistics_bytes(NormalizationBatch("shuffled"), workers, head.channels, head.layers)


def as_one_batch(workers: int, head: Head) -> Traffic:
    """One step of a head under "global"."""
    return statistics_bytes(NormalizationBatch("global"), workers, head.channels, head.layers)


def by_features(workers: int, head: Head) -> Traffic:
    """One step of a head, "shuffled", EXCHANGE "features"."""
    return features_bytes(workers, *head[:3])


def by_features_at_least(workers: int, head: Head) -> Traffic:
    """The least that moving the features of a head's RoIs can cost."""
    return lower_bound_bytes(workers, *head[:3])


def by_all_gather(workers: int, head: Head) -> Traffic:
    """One step of a head whose RoIs are shuffled the known public way."""
    return all_gather_bytes(workers, *head[:3])


def of_paper(way: Callable[[int, Head], Traffic], workers: int) -> Traffic:
    """One step of both heads of the paper."""
    return sum((way(workers, head) for head in PAPER), Traffic((), ()))


def gradients(workers: int) -> Traffic:
    """Return what DistributedDataParallel sends under every batch, as one call."""
    size = 4 * PARAMETERS
    return Traffic((), (Collective("all_reduce", workers, size, size),))


WAYS: dict[str, Callable[[int], Traffic]] = {
    "`global`": partial(of_paper, as_one_batch),
    "`shuffled`, statistics": partial(of_paper, by_statistics),
    f"`shuffled`, statistics, `SHUFFLE_GROUPS` {NODE}": lambda _: of_paper(by_statistics, NODE),
    "`shuffled`, features (all_to_all)": partial(of_paper, by_features),
    f"`shuffled`, features, `SHUFFLE_GROUPS` {NODE}": lambda _: of_paper(by_features, NODE),
    "moving features, lower bound": partial(of_paper, by_features_at_least),
    "shuffling by all-gather": partial(of_paper, by_all_gather),
    "for comparison: the gradients (DDP)": gradients,
}


def bytes_table() -> str:
    """Markdown: payload sent and bytes on the wire, per rank and step, forward / backward."""
    rows = []
    for workers, name, traffic in _ways():
        both = traffic.forward, traffic.backward
        cells = (" / ".join(size(count(part)) for part in both) for count in (sent, wire))
        rows.append([workers, name, len(traffic.collectives), *cells])
    headers = ["workers", "batch", "collectives", "payload sent", "on the wire"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def seconds_table() -> str:
    """Markdown: time per step in collectives, where every worker has such a link."""
    rows = [
        [workers, name, *(duration(seconds(traffic.collectives, link)) for link in LINKS)]
        for workers, name, traffic in _ways()
    ]
    headers = ["workers", "batch", *(link.name for link in LINKS)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _ways() -> Iterator[tuple[int, str, Traffic]]:
    for workers in WORKERS:
        for name, way in WAYS.items():
            if workers > NODE or "SHUFFLE_GROUPS" not in name:  # one node has one group
                yield workers, name, way(workers)


def size(number: float) -> str:
    """Bytes in decimal units, three digits."""
    return _with_unit(number, ("B", "kB", "MB", "GB", "TB"))


def duration(number: float) -> str:
    """Seconds, three digits."""
    return _with_unit(1e6 * number, ("us", "ms", "s"))


def _with_unit(number: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} {units[-1]}"
