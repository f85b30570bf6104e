"""Files that are whole or not there."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write(file)` on a temporary file beside `path` and put it in place when it is on disk.

    A process killed at any moment leaves the old file or the new one.

    Raises:
        OSError: the file cannot be written, say for lack of space; the message names it. The old
            file is as it was, and nothing else is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        reason = _system_error(error)
        if reason is None:
            raise
        what = "what was there before is intact" if path.exists() else "nothing is left of it"
        message = f"{reason.strerror or reason}; {what}"
        raise OSError(reason.errno, message, str(path)) from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The OSError among an error and those that it hides: torch.save raises its own over one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as standard JSON, atomically: NaN and infinities, which JSON lacks, as null.

    Raises:
        OSError: see `write_atomically`.
    """
    text = json.dumps(_finite(value), indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_folder_name(name: str, what: str) -> str:
    """`name`, which is a single part of a path and so stays in the folder that it is put in.

    Raises:
        ValueError: it is not; the message calls it `what`.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise ValueError(
            f"{what} {name!r}: a folder gets this name, so it must not be empty, '.' or '..', nor "
            "hold / or \\"
        )
    return name
