"""Bytes that a rank sends and receives per step: counted on real ranks, computed for many."""

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import Tensor

from .cost_model import (
    NODE,
    PAPER,
    Head,
    as_one_batch,
    by_all_gather,
    by_features,
    by_features_at_least,
    by_statistics,
    bytes_table,
    of_paper,
)
from .head import GATHERED, box_head, head_steps, mask_head
from .measuring import on_ranks, ranks_possible
from .traffic_model import Collective, Traffic, received, sent

HELP = "bytes sent and received per step, counted and computed"
# The arms of `head` that communicate, and what computes their bytes.
COMPUTED: dict[str, Callable[[int, Head], Traffic]] = {
    "global": as_one_batch,
    "shuffled, statistics": by_statistics,
    "shuffled, features": by_features,
    GATHERED: by_all_gather,
}


@dataclass(frozen=True)
class Row:
    """Bytes of one step of a head on rank 0; every rank has as many."""

    head: str
    ranks: int
    arm: str
    sent: int
    received: int
    sent_computed: int
    received_computed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rois", type=int, default=4, help="of a rank, in what is counted")
    add("--ranks", type=int, nargs="+", default=[n for n in (2, 4) if n <= ranks_possible()])


def run(args: argparse.Namespace) -> tuple[str, dict]:
    """Count and compute the bytes; return the tables and all numbers.

    Raises:
        AssertionError: what was counted is not what was computed.
    """
    rows = [row for ranks in args.ranks for row in on_ranks(_count, ranks, args.rois)]
    for row in rows:
        assert (row.sent, row.received) == (row.sent_computed, row.received_computed), row
    lines = [
        [r.head, r.ranks, r.arm, r.sent, r.received, r.sent_computed, r.received_computed]
        for r in rows
    ]
    headers = ["head", "ranks", "batch", "sent, B", "received, B", "sent, computed", "received, c."]
    counted_table = tabulate(lines, headers=headers, tablefmt="github")
    text = (
        f"{args.rois} RoIs a rank, counted at the collectives and computed:\n\n{counted_table}\n\n"
        f"Both heads at the paper's sizes, computed (forward / backward):\n\n{bytes_table()}\n\n"
        + "\n".join(f"{name} at {NODE} workers: {ratio:.6f}" for name, ratio in _ratios().items())
    )
    return text, {"rows": [asdict(row) for row in rows], "ratios": _ratios()}


def _count(device: torch.device, rois: int) -> list[Row]:
    """Count and compute on one rank."""
    ranks = dist.get_world_size()
    rows = []
    for name, build, paper in zip(("box", "mask"), (box_head, mask_head), PAPER, strict=True):
        side = {"box": 7, "mask": 14}[name]
        x = torch.randn(rois, paper.channels, side, side, device=device, requires_grad=True)
        for arm, step in head_steps(build, x):
            if arm not in COMPUTED:
                continue
            with counted() as calls:
                step()
            computed = COMPUTED[arm](ranks, Head(rois, *paper[1:])).collectives
            rows.append(Row(name, ranks, arm, *_both(calls), *_both(computed)))
    return rows


def _both(calls: Iterable[Collective]) -> tuple[int, int]:
    calls = list(calls)
    return sent(calls), received(calls)


def _ratios() -> dict[str, float]:
    def total(way: Callable[[int, Head], Traffic]) -> int:
        return sum(_both(of_paper(way, NODE).collectives))

    return {
        "bytes, statistics against all-gather": total(by_statistics) / total(by_all_gather),
        "bytes, features against the lower bound": total(by_features) / total(by_features_at_least),
    }


_CALLS: dict[str, tuple[str, Callable[..., tuple[Tensor, list[Tensor]]]]] = {
    "all_reduce": ("all_reduce", lambda tensor: (tensor, [tensor])),
    "all_gather": ("all_gather", lambda every, tensor: (tensor, every)),
    "all_to_all_single": ("all_to_all", lambda out, tensor, *splits: (tensor, [out])),
}


@contextlib.contextmanager
def counted() -> Iterator[list[Collective]]:
    """Collect this process's collectives of `torch.distributed`, in the order they are called.

    Those that run inside DistributedDataParallel are not seen: they are the same for every batch.
    """
    calls: list[Collective] = []
    originals = {name: getattr(dist, name) for name in _CALLS}

    def counting(name: str) -> Callable:
        kind, ends = _CALLS[name]

        def call(*args, **kwargs):
            source, out = ends(*args)
            calls.append(
                Collective(
                    kind,
                    dist.get_world_size(kwargs.get("group")),
                    source.nbytes,
                    sum(tensor.nbytes for tensor in out),
                )
            )
            return originals[name](*args, **kwargs)

        return call

    try:
        for name in _CALLS:
            setattr(dist, name, counting(name))
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
