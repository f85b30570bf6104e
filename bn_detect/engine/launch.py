"""Start one process per worker, or join those that torchrun started."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm


class WorkerDied(RuntimeError):
    """A worker ended by a signal or with an exit code; the others were stopped."""


def launched_by_torchrun() -> bool:
    """Whether torchrun (or a launcher that sets its variables) started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


def expected_world_size(num_gpus: int, num_machines: int) -> int:
    """Workers over all machines, known before they start."""
    if launched_by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return num_gpus * num_machines


def launch(
    main: Callable[..., Any],
    num_gpus: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    timeout: timedelta,
    args: tuple = (),
) -> None:
    """Run `main(*args)` in every worker: by Detectron2's launcher, or as torchrun's child.

    Args:
        num_gpus: workers per machine; GPUs with NCCL, or processes on CPU with gloo where the
            machine has none. Ignored under torchrun.
        timeout: after this long without an answer from a lost worker, the others end with an error.

    Raises:
        WorkerDied: a worker of this machine was killed.
    """
    if launched_by_torchrun():
        _join_torchrun(timeout)
        try:
            main(*args)
        finally:
            dist.destroy_process_group()
        return
    try:
        detectron2_launch(
            main,
            num_gpus,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=args,
            timeout=timeout,
        )
    except mp.ProcessExitedException as error:
        how = error.signal_name or f"exit code {error.exit_code}"
        rank = machine_rank * num_gpus + error.error_index
        raise WorkerDied(f"worker {rank} of {num_gpus * num_machines} died ({how})") from error


def share_cores() -> None:
    """Give each worker of this machine its part of the cores, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // comm.get_local_size()))


def _join_torchrun(timeout: timedelta) -> None:
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timeout)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
