"""Signals that ask a run to end: SIGTERM, as schedulers send it, and SIGINT, that is Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """The run ended because it was asked to; `code`, the exit code, is 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


def interruption(exit_code: int | None) -> Interrupted | None:
    """What a worker's exit code says, if that is an interruption."""
    return next((Interrupted(number) for number in SIGNALS if exit_code == 128 + number), None)


class Request:
    """What asked this process to end.

    Attributes:
        number: of the first signal; 0: there was none.
        times: how many signals came.
    """

    def __init__(self) -> None:
        self.number = self.times = 0


@contextlib.contextmanager
def requests(then: Callable[[Request], None] | None = None) -> Iterator[Request]:
    """Keep the signals that arrive meanwhile, instead of ending by them.

    Args:
        then: called at each of them, within the signal handler.
    """
    request = Request()

    def receive(number: int, _) -> None:
        request.number = request.number or number
        request.times += 1
        if then is not None:
            then(request)

    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may have handlers
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            # None: not set by Python, and out of its reach.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
