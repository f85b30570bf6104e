"""The one rule for commands: which error becomes which line and which exit code."""

import contextlib
import sys
from collections.abc import Callable
from typing import TypeVar

from ..runtime.errors import RunFailed
from ..runtime.foreign_warnings import silence_foreign_warnings
from ..runtime.signals import Interrupted, Request, requests

T = TypeVar("T")


def run_command(check: Callable[[], T], work: Callable[[T], int | None], *, go_on: str = "") -> int:
    """Run `work(check())` and return the command's exit code.

    Args:
        check: does all that can fail before anything starts, and returns what `work` needs.
        work: does the work; may return an exit code of its own, None means 0.
        go_on: what the user can do after a failure or an interruption, for the end of its line.

    Returns:
        0; 2 for a mistake of the user (ValueError), a spoilt file (CheckpointError), and a file or
        disk that cannot be read or written (OSError); 1 for a failed run (RunFailed, of which
        WorkerDied is one); 128 + the signal for an interruption (Ctrl-C, SIGTERM, SIGHUP). Each of
        these is one line on stderr, after the traceback of a failed worker. Any other exception is
        a fault of the package and passes with its traceback.
    """
    silence_foreign_warnings()
    advice = f"; {go_on}" if go_on else ""
    try:
        with requests(then=_end):
            return work(check()) or 0
    except RunFailed as error:
        if error.traceback:
            _say(error.traceback)
        return _say(_line(f"error: {error}{advice}"), 1)
    except Interrupted as interrupted:
        return _say(f"interrupted by {interrupted.name}{advice}", interrupted.exit_code)
    except SystemExit as error:  # the line was said where it happened
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:  # where no handler of ours stands, as in a thread
        return _say(f"interrupted by SIGINT{advice}", 130)
    except (ValueError, OSError) as error:
        return _say(_line(f"error: {error}"), 2)


def _end(request: Request) -> None:
    raise Interrupted(request.number)


def _line(text: str) -> str:
    return " ".join(text.splitlines())


def _say(text: str, code: int = 0) -> int:
    with contextlib.suppress(OSError):  # after SIGHUP there may be no terminal any more
        print(text, file=sys.stderr, flush=True)
    return code
