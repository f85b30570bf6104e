"""Several runs at once on one machine."""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence

import torch

from ...runtime.launch import cores
from ...runtime.signals import Interrupted
from ..reading import check_number
from ..runs import Run
from .child import ask_to_end
from .execute import execute

POLL_SECONDS = 0.05
WATCH_SECONDS = 1.0
END_SECONDS = 20.0  # schedulers kill 30 seconds after their signal

Group = Sequence[Run]  # done one after the other


def check_started_once(num_gpus: int | None) -> None:
    """Raise ValueError for a bad --num-gpus, and in one of several processes of torchrun."""
    if num_gpus is not None:
        check_number("--num-gpus", num_gpus)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: this command starts the workers of its "
            "runs by itself; start it once, without torchrun, with --num-gpus"
        )
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1":
        raise ValueError(
            f"SLURM_JOB_NUM_NODES is {nodes}, but the workers of a run are on one machine: ask "
            "for --nodes 1, and do several runs by several jobs, with --only"
        )


def default_jobs(groups: Sequence[Group]) -> int:
    """Return how many runs go on at once: one on GPUs; on CPU, as many as there are cores for."""
    runs = [run for group in groups for run in group]
    if any(run.on_gpu for run in runs):
        return 1
    return min(len(groups), max(1, cores() // max(run.processes for run in runs)))


def environments(groups: Sequence[Group], jobs: int) -> list[dict[str, str]]:
    """Return variables for each of the runs that go on at once: their share of cores, or GPUs.

    OMP_NUM_THREADS of the user stays: results can differ in the last bits by it.

    Raises:
        ValueError: there are fewer GPUs.
    """
    runs = [run for group in groups for run in group]
    processes = max(run.processes for run in runs)
    if not any(run.on_gpu for run in runs):
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // (jobs * processes)))
        return [{"OMP_NUM_THREADS": threads}] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if jobs * processes > len(gpus):
        raise ValueError(
            f"--jobs {jobs} with {processes} GPUs each needs {jobs * processes}; there are "
            f"{len(gpus)}"
        )
    parts = [gpus[job * processes : (job + 1) * processes] for job in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def run_here(groups: Sequence[Group], jobs: int, watch: Callable[[], object]) -> None:
    """Do all groups, `jobs` of them at once; call `watch` once a second and at the end.

    However this ends, no process that it started is left. Trainings that are interrupted write a
    checkpoint first, if they can within `END_SECONDS`.
    """
    slots = environments(groups, jobs)
    waiting = deque(groups)
    active: dict[int, Generator[None, None, None]] = {}
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
    except (KeyboardInterrupt, Interrupted):
        ask_to_end(END_SECONDS)
        raise
    finally:
        for work in active.values():
            work.close()


def in_turn(group: Group, environment: dict[str, str]) -> Generator[None, None, None]:
    """`execute` the runs of a group one after the other; yields while there is something to do."""
    for run in group:
        for _ in execute(run, environment):
            yield


_DONE = object()
