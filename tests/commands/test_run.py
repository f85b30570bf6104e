import os
import signal
import threading

import pytest

from bn_detect.commands.run import run_command
from bn_detect.runtime.errors import CheckpointError, RunFailed, WorkerDied
from bn_detect.runtime.signals import Interrupted

GO_ON = "start it again"


def raising(error):
    def work(*_):
        raise error

    return work


def test_work_gets_what_the_check_returns_and_its_exit_code_counts():
    given = []
    assert run_command(lambda: 3, given.append) == 0
    assert run_command(lambda: 3, lambda value: value + 1) == 4
    assert given == [3]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("KEY is 3;\nuse 4"), 2, "error: KEY is 3; use 4\n"),
        (CheckpointError("a.pth is damaged"), 2, "error: a.pth is damaged\n"),
        (OSError(28, "No space left on device", "f"), 2, "No space left on device: 'f'\n"),
        (RunFailed("arm a failed"), 1, f"error: arm a failed; {GO_ON}\n"),
        (WorkerDied("worker 1 died", "TRACE"), 1, f"TRACE\nerror: worker 1 died; {GO_ON}\n"),
        (Interrupted(signal.SIGTERM), 143, f"interrupted by SIGTERM; {GO_ON}\n"),
        (KeyboardInterrupt(), 130, f"interrupted by SIGINT; {GO_ON}\n"),
        (SystemExit(2), 2, ""),
    ],
)
@pytest.mark.parametrize("where", ["check", "work"])
def test_each_error_has_its_line_and_its_exit_code(error, code, line, where, capsys):
    fail, fine = raising(error), lambda *_: None
    check, work = (fail, fine) if where == "check" else (fine, fail)
    assert run_command(check, work, go_on=GO_ON) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(line) and err.count("\n") == line.count("\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_one_line_and_128_plus_its_number(number, capsys):
    before = signal.getsignal(number)
    code = run_command(
        lambda: None, lambda _: signal.pthread_kill(threading.get_ident(), number), go_on=GO_ON
    )
    assert code == 128 + number
    assert capsys.readouterr().err == f"interrupted by {number.name}; {GO_ON}\n"
    assert signal.getsignal(number) is before


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command(lambda: None, lambda _: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_fault_of_the_package_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_command(lambda: None, raising(KeyError("x")))
