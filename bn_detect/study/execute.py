"""Carry one run to its end: train, measure, each in a process of its own; keep how it went."""

import fcntl
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..runtime.files import write_json
from .runs import Run, read_json
from .versions import versions

TRAIN_NET = Path(__file__).parents[2] / "tools" / "train_net.py"
ERROR_LINES = 15


@dataclass(frozen=True)
class Step:
    """One process of a run: `doing` is what status.json says meanwhile, `log` a file name."""

    doing: str
    command: list[str]
    log: str


def execute(
    run: Run, environment: Mapping[str, str] | None = None, *, torchrun: bool = False
) -> Iterator[None]:
    """Do what is missing of a run; each `next` looks once and returns.

    Waits while another process is at the same run. A step that fails ends the run, and status.json
    says so. Closing the iterator ends the run's processes; so does the death of this one.

    Args:
        environment: on top of this process's own.
        torchrun: train several workers with torchrun instead of Detectron2's launcher.
    """
    with open(run.folder / ".lock", "w") as lock:
        while not _locked(lock.fileno()):
            yield
        if not run.trained and not run.trains:  # what trains it failed, or the given file is gone
            run.set_status("failed", error=f"there is no checkpoint {run.weights}", log="")
            return
        for step in _steps(run, torchrun):
            run.set_status(step.doing)
            _keep_versions(run, step.doing)
            log = run.folder / step.log
            code = yield from _process(step.command, log, environment or {}, lock.fileno())
            if code:
                run.set_status("failed", error=_error(step, code, log), log=str(log))
                return
        run.set_status("measured")


def _steps(run: Run, torchrun: bool) -> Iterator[Step]:
    """What is missing, looked at anew after each step."""
    if not run.trained:
        yield Step("training", _train_command(run, torchrun), "train.log")
    if not run.measured:
        program = ["-W", "ignore::FutureWarning", "-m", "bn_detect.study.measure"]
        yield Step("measuring", [sys.executable, *program, str(run.folder)], "measure.log")


def _train_command(run: Run, torchrun: bool) -> list[str]:
    workers = str(run.workers)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", workers]
    command = [sys.executable, *(launcher if torchrun and run.workers > 1 else ())]
    command += [str(TRAIN_NET), "--config-file", str(run.folder / "settings.yaml")]
    command += ["--num-gpus", workers, "--resume"]
    command += ["--trust-checkpoint"] if run.trust else []
    return [*command, "OUTPUT_DIR", str(run.folder), *run.train_options]


def _keep_versions(run: Run, doing: str) -> None:
    path = run.folder / "versions.json"
    write_json(path, read_json(path) | {doing: versions()})


def _process(
    command: list[str], log: Path, environment: Mapping[str, str], lock: int
) -> Iterator[None]:
    """Yields until the process ends and returns its exit code.

    It inherits the lock: where the system cannot end it with this process, it still keeps the run.
    """
    wrapper = [sys.executable, str(Path(__file__).with_name("with_parent.py")), str(os.getpid())]
    with open(log, "a") as file:
        process = subprocess.Popen(
            [*wrapper, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TQDM_DISABLE": "1", **environment},
            start_new_session=True,  # an interrupt from the keyboard is for the study to handle
            pass_fds=[lock],
        )
    try:
        while (code := process.poll()) is None:
            yield
        return code
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _error(step: Step, code: int, log: Path) -> str:
    """How a step failed, in the last lines of its log."""
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    with open(log, errors="replace") as file:
        lines = "".join(deque(file, ERROR_LINES)).strip()
    return f"{step.doing} ended with {how}\n{lines}"


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
