"""Several runs at once on one machine."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from .execute import execute
from .runs import Run

POLL_SECONDS = 0.1
WATCH_SECONDS = 1.0

Group = Sequence[Run]  # done one after the other


def cores() -> int:
    """Of this machine, as far as this process may use them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(run: Run) -> int:
    """One on GPUs; on CPU as many as give each worker of each run a core."""
    return 1 if run.on_gpu else max(1, cores() // run.processes)


def environments(run: Run, jobs: int) -> list[dict[str, str]]:
    """Variables for each of the runs that go on at once: their part of the cores, or their GPUs.

    Raises:
        ValueError: there are fewer GPUs.
    """
    if not run.on_gpu:
        threads = str(max(1, cores() // (jobs * run.processes)))
        return [{"OMP_NUM_THREADS": threads}] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if jobs * run.processes > len(gpus):
        raise ValueError(
            f"--jobs {jobs} with {run.processes} GPUs each needs {jobs * run.processes}; there are "
            f"{len(gpus)}"
        )
    parts = [gpus[job * run.processes : (job + 1) * run.processes] for job in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def run_here(groups: Sequence[Group], jobs: int, watch: Callable[[], None]) -> None:
    """Do all groups, `jobs` of them at once; call `watch` once a second, and at the end.

    However this ends, no process that it started is left.
    """
    slots = environments(groups[0][0], jobs)
    waiting, active = deque(groups), {}
    watched = time.monotonic()
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    active[slot] = in_turn(waiting.popleft(), slots[slot])
            for slot in list(active):
                if next(active[slot], _DONE) is _DONE:
                    del active[slot]
            if time.monotonic() - watched > WATCH_SECONDS:
                watch()
                watched = time.monotonic()
            time.sleep(POLL_SECONDS)
        watch()
    finally:
        for work in active.values():
            work.close()


def in_turn(group: Group, environment: dict[str, str], *, torchrun: bool = False) -> Iterator[int]:
    """`execute` the runs of a group one after the other; yields while there is something to do."""
    for run in group:
        for _ in execute(run, environment, torchrun=torchrun):
            yield 0


_DONE = object()
