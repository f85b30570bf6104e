"""Signals that ask a run to end: SIGTERM (schedulers), SIGINT (Ctrl-C) and SIGHUP (a closed
terminal)."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(SystemExit):
    """The run ended because a signal asked it to.

    Attributes:
        name: the signal's name, such as "SIGTERM".
        exit_code: 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(self.exit_code)
        self.name = signal.Signals(number).name


def interruption(exit_code: int | None) -> Interrupted | None:
    """Return the interruption that a worker's exit code stands for, or None."""
    return next((Interrupted(number) for number in SIGNALS if exit_code == 128 + number), None)


class Request:
    """The signals that asked this process to end.

    Attributes:
        number: the first signal, or 0 where none came.
        times: how many signals came.
    """

    def __init__(self) -> None:
        self.number = self.times = 0


@contextlib.contextmanager
def requests(then: Callable[[Request], None] | None = None) -> Iterator[Request]:
    """Collect the signals that arrive within the context instead of ending by them.

    SIGHUP stays ignored where it was, as under `nohup`. Outside the main thread, which alone may
    handle signals, nothing is collected.

    Args:
        then: called at each signal, within the signal handler.
    """
    request = Request()

    def receive(number: int, _) -> None:
        request.number = request.number or number
        request.times += 1
        if then is not None:
            then(request)

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, receive)
        yield request
    finally:
        for number, handler in before.items():
            # None: not set by Python, and out of its reach.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def ctrl_c_held() -> Iterator[None]:
    """Hold SIGINT back, here and, until they unblock it, in processes that are started meanwhile.

    Ctrl-C comes to all processes of a terminal; those then leave it to this one, which tells them,
    from their first instruction on. One that comes meanwhile is taken at the end.
    """
    resource_tracker.ensure_running()  # which would let SIGINT through when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
