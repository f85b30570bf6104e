"""Start one process per worker, or join those that torchrun started."""

import contextlib
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine.launch import _distributed_worker
from detectron2.utils import comm

from .errors import CheckpointError, WorkerDied
from .signals import Interrupted, Request, interruption, requests

GRACE = 5.0  # seconds in which the others may end by themselves, after one of them ended
FORCED = 20.0  # ... and in which they may end after SIGTERM
FILE_ERRORS = (CheckpointError, OSError)
REFUSED = 2  # exit code of a worker that has said what is wrong


def launched_by_torchrun() -> bool:
    """Whether torchrun (or a launcher that sets its variables) started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


def expected_world_size(num_gpus: int, num_machines: int) -> int:
    """Workers over all machines, known before they start.

    Raises:
        ValueError: a number below 1, except under torchrun, which has its own.
    """
    if launched_by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    for option, number in (("--num-gpus", num_gpus), ("--num-machines", num_machines)):
        if number < 1:
            raise ValueError(f"{option} is {number}; it must be at least 1")
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
    """Run `main(*args)` in every worker: in processes of our own, or as torchrun's child.

    Workers of one machine find each other through a file, and talk over the loopback interface
    (gloo; NCCL by its own choice), so nothing of them can be reached from outside.

    Args:
        num_gpus: workers per machine; GPUs with NCCL, or processes on CPU with gloo where the
            machine has none. Ignored under torchrun.
        dist_url: tcp://HOST:PORT of the first machine, where there are several.
        timeout: after this long without an answer from a lost worker, the others end with an error.

    Raises:
        WorkerDied: a worker of this machine was killed or failed; names the first one.
        Interrupted: they ended because a signal asked them to.
        SystemExit: a file was missing, spoiled or could not be written; a line on it was printed,
            and the exit code is `REFUSED`. A worker that is alone raises one of `FILE_ERRORS`.
    """
    if launched_by_torchrun():
        _join_torchrun(timeout)
        try:
            _said(main, args)
        finally:
            dist.destroy_process_group()
        return
    world_size = num_gpus * num_machines
    if world_size == 1:
        main(*args)
        return
    with contextlib.ExitStack() as stack:
        if num_machines == 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bn_detect-"))
            dist_url = f"file://{folder}/store"
            _stay_on_loopback()
        common = (_said, world_size, num_gpus, machine_rank, dist_url, (main, args), timeout)
        workers = mp.start_processes(_distributed_worker, common, num_gpus, join=False)
        request = stack.enter_context(requests(then=lambda request: _pass_on(workers, request)))
        _watch(workers, machine_rank * num_gpus, world_size, request)


def _said(main: Callable[..., Any], args: tuple) -> None:
    """Run `main`; where a file is what fails it, one line says so in place of a traceback."""
    try:
        main(*args)
    except FILE_ERRORS as error:
        who = f"worker {comm.get_rank()}: " if comm.get_world_size() > 1 else ""
        print(f"error: {who}{error}", file=sys.stderr, flush=True)
        sys.exit(REFUSED)


def _stay_on_loopback() -> None:
    """Else gloo listens on the address that the host's name resolves to."""
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _pass_on(workers: mp.ProcessContext, request: Request) -> None:
    """Tell the workers what this process was told; the second time, kill them."""
    for pid in workers.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if request.times == 1 else signal.SIGKILL)


def _watch(workers: mp.ProcessContext, first_rank: int, world_size: int, request: Request) -> None:
    """Wait until all have ended; raise for what went wrong first, and leave none behind."""
    silent: list[int] = []
    try:
        failed = _failed(workers.processes)
        silent = [i for i, process in enumerate(workers.processes) if process.is_alive()]
    finally:
        _end(workers.processes)
    if request.number:
        raise Interrupted(request.number)
    if not failed:
        return
    index = _cause(failed)
    code = failed[index]
    if code == REFUSED:
        sys.exit(REFUSED)
    if (interrupted := interruption(code)) is not None:
        raise interrupted
    traceback = _traceback(workers.error_files[index])
    how = signal.Signals(-code).name if code < 0 else traceback.rpartition("\n")[2] or code
    message = f"worker {first_rank + index} of {world_size} died ({how})"
    if silent:
        names = ", ".join(str(first_rank + i) for i in silent)
        message += f"; worker {names} did not answer, and was ended by force"
    raise WorkerDied(message, traceback)


def _failed(processes: list) -> dict[int, int]:
    """Exit codes, not 0, of those that failed first or within `GRACE` of it, in their order."""
    running, failed = dict(enumerate(processes)), {}
    deadline = None
    while running and (deadline is None or time.monotonic() < deadline):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        wait([process.sentinel for process in running.values()], timeout=left)
        for index, process in list(running.items()):
            if not process.is_alive():
                del running[index]
                if process.exitcode:
                    failed[index] = process.exitcode
                    deadline = deadline or time.monotonic() + GRACE
    return failed


def _cause(failed: dict[int, int]) -> int:
    """The first that was killed. Those that waited for it fail too (NCCL's by SIGABRT), and may be
    noticed before it."""
    killed = [index for index, code in failed.items() if code < 0 and code != -signal.SIGABRT]
    return (killed or list(failed))[0]


def _end(processes: list) -> None:
    for stop in (lambda process: process.terminate(), lambda process: process.kill()):
        running = [process for process in processes if process.is_alive()]
        for process in running:
            stop(process)
        deadline = time.monotonic() + FORCED
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))


def _traceback(file: str) -> str:
    """What an exception left; "" where there was none."""
    path = Path(file)
    return pickle.loads(path.read_bytes()).rstrip() if path.exists() else ""  # our own worker's


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
