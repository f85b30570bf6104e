"""Start one process per worker, or join those that torchrun started; say which one died."""

import atexit
import contextlib
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from .errors import CheckpointError, WorkerDied
from .foreign_warnings import silence_foreign_warnings
from .signals import Interrupted, Request, ctrl_c_held, interruption, requests

GRACE = 5.0  # seconds in which the others may end by themselves, after one of them ended
FORCED = 20.0  # seconds in which they may end after SIGTERM
FILE_ERRORS = (CheckpointError, OSError)
REFUSED = 2  # exit code of a worker that has said what is wrong

_OF_WORKERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OF_TORCHRUN = (*_OF_WORKERS, "MASTER_ADDR", "MASTER_PORT")


def launched_by_torchrun() -> bool:
    """Return whether torchrun (or a launcher that sets its variables) started this process.

    Raises:
        ValueError: some of its variables are missing or no numbers; names them.
    """
    given = [name for name in _OF_WORKERS if name in os.environ]
    if not given:
        return False
    missing = [name for name in _OF_TORCHRUN if name not in os.environ]
    if missing:
        raise ValueError(
            f"the environment holds {', '.join(given)}, which torchrun sets, but not "
            f"{', '.join(missing)}; start with torchrun, or unset {' '.join(given)}"
        )
    values = [os.environ[name] for name in _OF_WORKERS]
    numbers = [int(value) if value.isdecimal() else -1 for value in values]
    if not (0 <= numbers[0] < numbers[1] and 0 <= numbers[2] < numbers[3] <= numbers[1]):
        pairs = " ".join(f"{n}={v}" for n, v in zip(_OF_WORKERS, values, strict=True))
        raise ValueError(f"the environment holds {pairs}, which torchrun never sets; unset them")
    return True


def expected_world_size(num_gpus: int, num_machines: int = 1, machine_rank: int = 0) -> int:
    """Return the number of workers over all machines, before they start.

    Raises:
        ValueError: a number that cannot be, or see `launched_by_torchrun`, whose numbers count.
    """
    if launched_by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    for option, number in (("--num-gpus", num_gpus), ("--num-machines", num_machines)):
        if number < 1:
            raise ValueError(f"{option} is {number}; it must be at least 1")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank is {machine_rank}; it must be from 0 to {num_machines - 1}, below "
            f"--num-machines {num_machines}"
        )
    if torch.cuda.is_available() and num_gpus > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus is {num_gpus}, but this machine has {torch.cuda.device_count()} GPUs"
        )
    return num_gpus * num_machines


def launch(
    main: Callable[..., Any],
    num_gpus: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "",
    timeout: timedelta,
    args: tuple = (),
) -> None:
    """Run `main(*args)` in every worker: in this process, in processes of our own, or as torchrun's
    child.

    Workers of one machine find each other through a file and talk over the loopback interface
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
        local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        _in_group(main, args, *local, timeout)
        return
    world_size = num_gpus * num_machines
    if world_size == 1:
        _alone(main, args)
        return
    with contextlib.ExitStack() as stack:
        if num_machines == 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bn_detect-"))
            dist_url = str(Path(folder, "store"))
            stay_on_loopback()
        first = machine_rank * num_gpus
        common = (main, args, first, num_gpus, world_size, dist_url, timeout)
        with ctrl_c_held():
            workers = mp.start_processes(_worker, common, num_gpus, join=False)
            request = stack.enter_context(requests(then=lambda request: _pass_on(workers, request)))
        _watch(workers, first, world_size, request)


def _alone(main: Callable[..., Any], args: tuple) -> None:
    try:
        main(*args)
    except FILE_ERRORS:
        raise
    except Exception as error:
        how = "".join(traceback.format_exception_only(error)).strip()
        raise WorkerDied(f"the run died ({how})", traceback.format_exc().rstrip()) from error


def _worker(
    local_rank: int,
    main: Callable[..., Any],
    args: tuple,
    first: int,
    local_size: int,
    world_size: int,
    dist_url: str,
    timeout: timedelta,
) -> None:
    """Run a worker that meets the others at an address, or in a file."""
    # From here on torch takes SIGINT silently; it comes, too, when the launcher has died.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    silence_foreign_warnings()
    group: dict[str, Any] = {"rank": first + local_rank, "world_size": world_size}
    if "://" in dist_url:
        group["init_method"] = dist_url
    else:  # not as file://, which would take # and ? in it for something else
        group["store"] = dist.FileStore(dist_url, world_size)
    _in_group(main, args, local_rank, local_size, timeout, **group)
    _leave()


def _leave() -> None:
    """End this process, whose work is done, without tearing down its interpreter.

    There a thread of a native library, unknown to us, has once aborted a worker that had written
    everything, and a finished training counted as failed.
    """
    atexit._run_exitfuncs()  # ends loader processes, flushes queues and logs
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _in_group(
    main: Callable[..., Any],
    args: tuple,
    local_rank: int,
    local_size: int,
    timeout: timedelta,
    **group: Any,
) -> None:
    """Join the process group and run `main`; one line stands for a traceback about a file."""
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timeout, **group)
    comm.create_local_process_group(local_size)
    comm.synchronize()
    try:
        main(*args)
    except FILE_ERRORS as error:
        print(f"error: worker {comm.get_rank()}: {error}", file=sys.stderr, flush=True)
        sys.exit(REFUSED)
    dist.destroy_process_group()


def stay_on_loopback() -> None:
    """Keep gloo from the address that the host's name resolves to."""
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
    # The first that was killed: those that waited for it fail too (NCCL's by SIGABRT), and may be
    # noticed before it.
    killed = [index for index, code in failed.items() if code < 0 and code != -signal.SIGABRT]
    index = (killed or list(failed))[0]
    code = failed[index]
    if code == REFUSED:
        sys.exit(REFUSED)
    if (interrupted := interruption(code)) is not None:
        raise interrupted
    file = Path(workers.error_files[index])
    text = pickle.loads(file.read_bytes()).rstrip() if file.exists() else ""  # of our own worker
    how = signal.Signals(-code).name if code < 0 else text.rpartition("\n")[2] or code
    message = f"worker {first_rank + index} of {world_size} died ({how})"
    if silent:
        names = ", ".join(str(first_rank + i) for i in silent)
        message += f"; worker {names} did not answer, and was ended by force"
    raise WorkerDied(message, text)


def _failed(processes: list) -> dict[int, int]:
    """Return the exit codes, not 0, of those that failed first or within `GRACE` of it, in their
    order."""
    running: dict[int, Any] = dict(enumerate(processes))
    failed: dict[int, int] = {}
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


def _end(processes: list) -> None:
    for stop in (lambda process: process.terminate(), lambda process: process.kill()):
        running = [process for process in processes if process.is_alive()]
        for process in running:
            stop(process)
        deadline = time.monotonic() + FORCED
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))


def cores() -> int:
    """Return how many cores of this machine this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores() -> None:
    """Give each worker of this machine its part of the cores, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // comm.get_local_size()))
