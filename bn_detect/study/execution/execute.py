"""Carry one run to its end: train, then measure, each in a process of its own; keep how it went."""

import contextlib
import signal
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.files import read_json, write_json
from ..folders import locked
from ..runs import Run
from ..versions import versions
from . import child, steps

ERROR_LINES = 15


@dataclass(frozen=True)
class Task:
    """One process of a run: `doing` is what status.json says meanwhile, `log` a file name."""

    doing: str
    step: child.Step
    log: str


def execute(run: Run, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Carry out what is missing of a run; each `next` looks once and returns.

    Waits while another process is at the same run. A step that fails ends the run, and status.json
    says so. Closing the iterator ends the run's processes; so does the death of this one.

    Args:
        environment: on top of this process's own.
    """
    while True:
        with locked(run.folder / ".lock") as free:
            if free:
                yield from _execute(run, environment or {})
                return
        yield


def _execute(run: Run, environment: Mapping[str, str]) -> Iterator[None]:
    needed = run.start if run.trains and not run.trained else run.weights
    is_made_here = run.trains and not run.start
    if not is_made_here and "://" not in needed and not Path(needed).is_file():
        run.set_status("failed", error=f"there is no checkpoint {needed}", log="")
        return  # the run that makes it failed, or the given file is gone
    for task in _tasks(run):
        run.set_status(task.doing)
        path = run.folder / "versions.json"
        write_json(path, read_json(path) | {task.doing: versions()})
        log = run.folder / task.log
        code = yield from _process(task.step, run.folder, log, environment)
        if code:
            run.set_status("failed", error=_error(task, code, log), log=str(log))
            return
    run.set_status("measured")


def _tasks(run: Run) -> Iterator[Task]:
    """Yield the tasks that are missing; look again after each."""
    if not run.trained:
        yield Task("training", steps.train, "train.log")
    if not run.measured:
        yield Task("measuring", steps.measure, "measure.log")


def _process(
    step: child.Step, folder: Path, log: Path, environment: Mapping[str, str]
) -> Generator[None, None, int]:
    """Yield until the process ends; return its exit code."""
    process = child.start(step, folder, log, environment)
    try:
        while process.exitcode is None:
            yield
        return process.exitcode
    finally:
        child.kill(process)


def _error(task: Task, code: int, log: Path) -> str:
    """Say how a task failed, with the last lines of its log."""
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    lines = "it wrote no log"  # where its process was killed at its beginning
    with contextlib.suppress(FileNotFoundError), open(log, errors="replace") as file:
        lines = "".join(deque(file, ERROR_LINES)).strip()
    return f"{task.doing} ended with {how}\n{lines}"
