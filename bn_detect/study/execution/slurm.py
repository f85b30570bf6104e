"""Runs as jobs of a Slurm cluster, by submitit (an extra: pip install bn_detect[slurm])."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..runs import Run
from .child import ask_to_end
from .pool import Group, in_turn

POLL_SECONDS = 2.0
MINUTES = 48 * 60  # a job's limit; SBATCH_TIMELIMIT overrides it
TIME_LIMITS = 100  # that a job may reach, and be queued again
SIGNAL_SECONDS = 120  # before its end a job is told of it
CORES_PER_WORKER = 4  # they load the images


def run_on_cluster(
    groups: Sequence[Group], folder: Path, watch: Callable[[], None], *, cluster: str = "slurm"
) -> None:
    """Submit each group as a job and wait for all of them.

    The study's folder must be on a file system that the nodes share. Partition, account, time limit
    and the like are taken from sbatch's variables: SBATCH_PARTITION, SBATCH_ACCOUNT and so on. Jobs
    go on when this process ends; a job whose run another one is at waits for it, and repeats
    nothing. A job at its time limit, or preempted, writes a checkpoint, is queued again, and goes
    on from there.

    Args:
        folder: for submitit's own files.
        watch: called every few seconds.
        cluster: "slurm", or "local" for submitit's executor on this machine.

    Raises:
        ValueError: submitit or Slurm is not there.
    """
    executor = _executor(folder, groups[0][0], cluster)
    try:
        with executor.batch():
            jobs = [executor.submit(GroupJob(), group) for group in groups]
    except Exception as refused:  # of submitit: what sbatch said
        text = " ".join(str(refused).split())
        raise ValueError(f"--launcher {cluster}: the jobs were refused: {text:.500}") from refused
    waiting = dict(zip(jobs, groups, strict=True))
    while waiting:
        for job in [job for job in waiting if job.done()]:
            group = waiting.pop(job)
            if error := job.exception():
                _failed(group, str(error), str(job.paths.stderr))
        watch()
        time.sleep(POLL_SECONDS)


class GroupJob:
    """Do the runs of a group, as a job on the cluster, which may be ended and queued again."""

    def __call__(self, group: Group) -> None:
        for _ in in_turn(group, {}):
            time.sleep(POLL_SECONDS)

    def checkpoint(self, group: Group) -> Any:
        """Called by submitit at the time limit: let trainings write theirs; say what to repeat."""
        import submitit

        ask_to_end(SIGNAL_SECONDS / 2)
        return submitit.helpers.DelayedSubmission(self, group)


def _executor(folder: Path, run: Run, cluster: str) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ValueError(
            "--launcher slurm needs submitit: pip install submitit, or bn_detect[slurm]"
        ) from error
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=cluster, slurm_max_num_timeout=TIME_LIMITS
        )
    except RuntimeError as error:  # sbatch is not found
        raise ValueError(f"--launcher {cluster}: {error}") from error
    executor.update_parameters(
        name=folder.parent.name,
        timeout_min=MINUTES,
        nodes=1,
        tasks_per_node=1,
        cpus_per_task=CORES_PER_WORKER * run.processes,
        gpus_per_node=run.processes if run.on_gpu else 0,
        slurm_signal_delay_s=SIGNAL_SECONDS,
    )
    return executor


def _failed(group: Group, error: str, log: str) -> None:
    """The job itself ended badly: no node, out of memory, out of time."""
    for run in group:
        if not run.measured and run.status().get("state") != "failed":
            run.set_status("failed", error=error, log=log)
