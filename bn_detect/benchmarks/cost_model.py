"""What shuffling costs on known links, by latency and bandwidth (docs/scaling.md)."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tabulate import tabulate

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


def of_heads(way: Callable[[int, Head], Traffic], workers: int) -> Traffic:
    """One step of both heads of the paper."""
    return sum((way(workers, head) for head in PAPER), Traffic((), ()))


def _by_statistics(workers: int, head: Head) -> Traffic:
    return statistics_bytes(workers, workers, head.channels, head.layers)


def _as_one_batch(workers: int, head: Head) -> Traffic:
    return statistics_bytes(workers, 1, head.channels, head.layers, counts=False)


def _moving(function: Callable[..., Traffic]) -> Callable[[int, Head], Traffic]:
    return lambda workers, head: function(workers, *head[:3])


WAYS: dict[str, Callable[[int, Head], Traffic]] = {
    "`global`": _as_one_batch,
    "`shuffled`, statistics": _by_statistics,
    f"`shuffled`, statistics, `SHUFFLE_GROUPS` {NODE}": lambda _, head: _by_statistics(NODE, head),
    "`shuffled`, features (all_to_all)": _moving(features_bytes),
    "moving features, lower bound": _moving(lower_bound_bytes),
    "shuffling by all-gather": _moving(all_gather_bytes),
}


def bytes_table() -> str:
    """Markdown: payload sent and bytes on the wire, per rank and step, forward / backward."""
    rows = []
    for workers in WORKERS:
        for name, way in WAYS.items():
            traffic = of_heads(way, workers)
            both = traffic.forward, traffic.backward
            cells = (" / ".join(size(count(part)) for part in both) for count in (sent, wire))
            rows.append([workers, name, len(traffic.collectives), *cells])
    headers = ["workers", "batch", "collectives", "payload sent", "on the wire"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def seconds_table() -> str:
    """Markdown: milliseconds per step in collectives, where every worker has such a link."""
    rows = [
        [workers, name, *(f"{1e3 * seconds(traffic.collectives, link):,.3g}" for link in LINKS)]
        for workers in WORKERS
        for name, way in WAYS.items()
        for traffic in [of_heads(way, workers)]
    ]
    headers = ["workers", "batch", *(f"{link.name}, ms" for link in LINKS)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def size(number: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
