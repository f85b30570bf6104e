"""Run a function on several real ranks (gloo, CPU) from a test."""

import os
import pickle
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

COLLECTIVE_TIMEOUT = timedelta(seconds=120)  # of ranks that a busy machine starts one by one
GRACE = 2.0  # seconds that the other ranks get to end by themselves after one failed


class RankError(RuntimeError):
    """What happened on a rank: its traceback, as the cause of the exception raised here."""


def run_ranks(fn: Callable, world_size: int, *args: Any, timeout: float = 300) -> list:
    """Call `fn(rank, world_size, *args)` on `world_size` new processes joined by gloo.

    Starting processes takes seconds, so let one call run many cases.

    Args:
        fn: a module-level function; what it returns must be picklable (tensors are).
        timeout: seconds for everything; ranks that are left then are killed.

    Returns:
        What each rank returned, by rank.

    Raises:
        Exception: the one that was raised first on any rank, caused by a `RankError` with its
            traceback.
        RankError: a rank died without an exception.
        TimeoutError: some ranks had not ended after `timeout` seconds.
    """
    return run_worlds(fn, [world_size], *args, timeout=timeout)[world_size]


def run_worlds(
    fn: Callable, world_sizes: Sequence[int], *args: Any, timeout: float = 300
) -> dict[int, list]:
    """As `run_ranks` for one world size after another, on the same processes.

    Returns:
        By world size, what each of its ranks returned.
    """
    deadline = time.monotonic() + timeout
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        ranks = [
            context.Process(target=_rank, args=(fn, r, world_sizes, args, folder), daemon=True)
            for r in range(max(world_sizes))
        ]
        try:
            for process in ranks:
                process.start()
            _join(ranks, deadline)
            late = [r for r, process in enumerate(ranks) if process.is_alive()]
        finally:
            for process in ranks:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                if process.pid is not None:
                    process.join()
        by_rank = _results(folder, [process.exitcode for process in ranks], late, timeout)
    return {size: [results[size] for results in by_rank[:size]] for size in world_sizes}


def _join(ranks: list, deadline: float) -> None:
    """Wait until all have ended, the deadline, or some time after the first failure."""
    running = list(ranks)
    while running and (left := deadline - time.monotonic()) > 0:
        wait([process.sentinel for process in running], timeout=left)
        running = [process for process in running if process.is_alive()]
        if any(process.exitcode for process in ranks):
            deadline = min(deadline, time.monotonic() + GRACE)


def _results(folder: Path, exit_codes: list, late: list[int], timeout: float) -> list[dict]:
    outcomes = {r: path for r in range(len(exit_codes)) if (path := folder / f"{r}.pt").exists()}
    loaded = {r: torch.load(path, weights_only=False) for r, path in outcomes.items()}
    failures = [(*outcome[1:], r) for r, outcome in loaded.items() if outcome[0] == "error"]
    if failures:
        _, pickled, text, rank = min(failures, key=lambda failure: failure[0])
        cause = RankError(f"on rank {rank}:\n{text}")
        raise (pickle.loads(pickled) if pickled else RankError(f"rank {rank} failed")) from cause
    dead = {r: code for r, code in enumerate(exit_codes) if code or r not in loaded}
    dead = {r: code for r, code in dead.items() if r not in late}
    if dead:
        raise RankError(f"ranks died without an exception; exit code by rank: {dead}")
    if late:
        raise TimeoutError(f"ranks {late} had not ended after {timeout} s, and were killed")
    return [loaded[r][1] for r in range(len(exit_codes))]


def _rank(fn: Callable, rank: int, sizes: Sequence[int], args: tuple, folder: Path) -> None:
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # not whatever the host name resolves to
    try:
        outcome = ("result", {n: _in_world(n, fn, rank, args, folder) for n in sizes if rank < n})
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent raises it
        outcome = ("error", time.monotonic(), _pickled(error), traceback.format_exc())
    _save(outcome, folder / f"{rank}.pt")
    if outcome[0] == "error":
        os._exit(1)  # at once: closing the connections ends the other ranks' collectives


def _in_world(size: int, fn: Callable, rank: int, args: tuple, folder: Path) -> Any:
    # A file, not a port: nobody else can take it in between.
    store = dist.FileStore(str(folder / f"store-{size}"), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT
    )
    result = fn(rank, size, *args)
    dist.destroy_process_group()
    return result


def _save(outcome: tuple, path: Path) -> None:
    """Through a file: queues hand tensors over by shared memory, which ends with its process."""
    part = path.with_suffix(".part")
    torch.save(outcome, part)
    part.rename(path)


def _pickled(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    except Exception:  # noqa: BLE001 - an exception of any make may be unpicklable
        return None
