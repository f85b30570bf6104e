"""Processes of the pool: forked from one that has imported everything, isolated, easily killed.

A run of 15 seconds must not pay for importing torch and Detectron2. So a server imports them once
(multiprocessing's "forkserver"; it never runs anything itself, and so has no threads and no CUDA
context that a fork would break), and each step of a run is a fork of it.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from ...runtime.errors import RunFailed
from ...runtime.signals import ctrl_c_held

SERVER_DIED = 255  # multiprocessing's exit code of a process whose end nobody saw
PRELOADED = ["bn_detect.study.execution.steps"]
# Read when modules are imported, so they must be there when the server starts.
_AT_IMPORT = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")

Step = Callable[[Path], None]  # given the run's folder, which says all


def start(step: Step, folder: Path, log: Path, environment: Mapping[str, str]) -> BaseProcess:
    """Start `step(folder)` in a process of its own; its output goes to `log`.

    It ends when this process does, by whatever signal. Its exit code is 2 where a ValueError or
    OSError says in one line what is wrong, 1 for a failure with a traceback.

    Args:
        environment: variables on top of this process's own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    everything = {**os.environ, **_AT_IMPORT, **environment}
    everything = {k: v for k, v in everything.items() if k not in _OF_TORCHRUN}
    process = context.Process(target=_run, args=(step, folder, log, everything))
    with mock.patch.dict(os.environ, _AT_IMPORT):
        with ctrl_c_held():  # from the server too, which would end with a traceback as it imports
            forkserver.ensure_running()
        process.start()
    return process


def ask_to_end(seconds: float) -> None:
    """Ask all processes that `start` made here to end, and wait so many seconds at most.

    A training ends after its iteration, with a checkpoint; anything else ends at once.
    """
    running, deadline = multiprocessing.active_children(), time.monotonic() + seconds
    for process in running:
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))


def kill(process: BaseProcess) -> None:
    """End a process and all that it started, and wait until it is gone."""
    if process.exitcode in (None, SERVER_DIED) and process.pid is not None:
        for end in (os.killpg, os.kill):  # the group is not there before the process has made it
            with contextlib.suppress(ProcessLookupError):
                end(process.pid, signal.SIGKILL)
    process.join()


def _run(step: Step, folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    os.setsid()  # an interrupt from the keyboard is for the study to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "a") as file, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(_exit_code(step, folder))


def _end_with_parent() -> None:
    """End this process and all that it started when the study ends, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _exit_code(step: Step, folder: Path) -> int:
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        step(folder)
    except (ValueError, OSError) as error:
        traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except RunFailed as error:
        print(error.traceback or "", f"error: {error}", sep="\n", file=sys.stderr, flush=True)
        return 1
    return 0
