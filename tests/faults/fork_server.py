"""Training runs without the seconds that importing takes: forked from a process that has imported.

`ForkServer.start` runs the main function of tools/train_net.py; its workers are forked, where the
command spawns them. A run can be told to do something to itself at a moment of its life.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.coco_folder import make_coco_folder
from tests.helpers.train_net import REPOSITORY, Command


@dataclass
class Run:
    """A run of tools/train_net.py.

    Attributes:
        pid: of the launcher. log: what all its processes printed.
    """

    pid: int
    log: Path
    _code: int | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 300.0) -> int:
        """Its exit code, negative for a signal; AssertionError where it does not end in time."""
        ended = self._ended.wait(seconds)
        assert ended, f"it had not ended after {seconds} s:\n{self.printed[-2000:]}"
        return self._code

    def workers(self) -> list[int]:
        """Process ids of the ranks, in their order."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one has just ended
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            return sorted(int(pid) for pid in text.split() if not _is_tracker(pid))
        return []

    def left(self) -> list[int]:
        """Processes of the run that are alive: they are in the session that it began."""
        return in_session(self.pid)


def _is_tracker(pid: str) -> bool:
    """Whether it is the process that Python starts to look after shared memory."""
    return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def in_session(session: int) -> list[int]:
    """Processes of a session that are alive."""
    every = (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
    return [pid for pid in every if _session(pid) == session]


def _session(pid: int) -> int | None:
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(fields[2])


class ForkServer:
    """Starts runs on a tiny dataset in `root`."""

    def __init__(self, root: Path) -> None:
        make_coco_folder(root, num_images=6, size=(96, 64), keypoints=False)
        self.command, self.root = Command(root), root
        self._runs: dict[int, Run] = {}
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.forked"],
            cwd=REPOSITORY,
            env=self.command.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started: list[int] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self, output: Path, *flags: object, moment: dict | None = None, **keys: object
    ) -> Run:
        """Start a run; `moment`: see `forked.Moment`; `keys` as for `Command`."""
        self._number += 1
        log = self.root / f"run{self._number}.log"
        arguments = self.command.arguments(output, *flags, **keys)
        request = {"arguments": arguments, "log": str(log), "moment": moment}
        with self._news:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            ready = self._news.wait_for(lambda: self._started, timeout=300)
            assert ready, "the server did not start the run"
            return self._runs[self._started.pop()]

    def run(self, output: Path, *flags: object, **keys: object) -> Run:
        """Start a run, which must end well."""
        run = self.start(output, *flags, **keys)
        assert run.wait() == 0, run.printed[-3000:]
        return run

    def _listen(self) -> None:
        for line in self._process.stdout:
            news = json.loads(line)
            with self._news:
                if "log" in news:
                    self._runs[news["pid"]] = Run(news["pid"], Path(news["log"]))
                    self._started.append(news["pid"])
                    self._news.notify_all()
                else:
                    run = self._runs[news["pid"]]
                    run._code = news["code"]
                    run._ended.set()

    def close(self) -> None:
        for run in self._runs.values():
            for pid in run.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(timeout=20)


def wait_for(condition, seconds: float = 120.0) -> float:
    """Poll until `condition()` holds; the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "what was waited for did not happen"
        time.sleep(0.02)
    return time.monotonic() - begin
