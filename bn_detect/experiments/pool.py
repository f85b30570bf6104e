"""Several runs at once, each in one of a few processes that stay: starting one takes seconds."""

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .job import Job

PR_SET_PDEATHSIG = 1  # prctl(2), Linux
Group = Sequence[Job]  # done one after the other


def do_all(groups: Sequence[Group], output: Path, processes: int) -> dict[Job, dict[str, Any]]:
    """Do what is missing of all runs; returns what every one found.

    A finished run is not repeated. A bar shows how many there are, and how long they take.

    Raises:
        ValueError: a folder holds a run with other settings.
        RuntimeError: a run failed; the others end first.
    """
    found = {job: job.found(output) for group in groups for job in group}
    missing = [[job for job in group if found[job] is None] for group in groups]
    missing = [group for group in missing if group]
    total, done = len(found), sum(result is not None for result in found.values())
    if missing:
        with (
            tqdm(total=total, initial=done, unit="run", smoothing=0) as bar,
            ProcessPoolExecutor(
                processes,
                multiprocessing.get_context("spawn"),  # torch's threads do not survive a fork
                initializer=_start,
                initargs=(os.getpid(),),
            ) as pool,
        ):
            futures = [pool.submit(_do_group, group, output) for group in missing]
            try:
                failures = _collect(futures, found, bar)
            except BaseException:  # such as Ctrl-C, which the processes get as well
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failures:
            raise RuntimeError("; ".join(failures))
    return found


def _collect(futures: list, found: dict[Job, dict[str, Any] | None], bar: tqdm) -> list[str]:
    failures = []
    for future in as_completed(futures):
        try:
            results = future.result()
        except Exception as error:  # noqa: BLE001 - whatever a run raises
            failures.append(f"{type(error).__name__}: {error}")
            continue
        found.update(results)
        for job in results:
            bar.set_postfix_str(job.label, refresh=False)
            bar.update()
    return failures


def _start(parent: int) -> None:
    """In a new process: one thread, no output, and an end when the parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be watched
        sys.exit()
    import torch

    torch.set_num_threads(1)


def _do_group(group: Group, output: Path) -> dict[Job, dict[str, Any]]:
    results = {}
    for job in group:
        begin = time.process_time()
        run = importlib.import_module(f".{job.experiment}", __package__).run
        found = run(job, output)
        found["seconds"] = time.process_time() - begin
        job.keep(output, found)
        results[job] = job.found(output)
    return results
