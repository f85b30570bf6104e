"""Write files that are whole or not there, and check names that become folders."""

import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

OTHER_OUTPUT = "use another --output"
TEMPORARY = ".*.bn_detect-tmp"  # what `write_atomically` leaves where its process is killed


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write(file)` on a temporary file beside `path` and put it in place when it is on disk.

    A process killed at any moment leaves the old file or the new one, and two writers leave what
    one of them wrote. A link is followed to the file that it names, whose mode is kept.

    Raises:
        OSError: the file cannot be written, say for lack of space; names the file. The old file is
            as it was, and nothing else is left.
    """
    path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    if mode is not None and not path.is_file():  # such as /dev/stdout; a folder is an error
        with open(path, "wb") as file:
            write(file)
        return
    try:
        temporary, descriptor = _temporary(path)
        try:
            with open(descriptor, "wb") as file:
                if mode is not None:
                    os.fchmod(descriptor, mode)
                write(file)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except BaseException as error:
        if (reason := system_error(error)) is None:
            raise
        state = "what was there before is intact" if path.exists() else "nothing is left of it"
        message = f"{reason.strerror or reason}; {state}"
        raise OSError(reason.errno, message, str(path)) from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as `write_atomically` writes, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def _temporary(path: Path) -> tuple[Path, int]:
    """Make a new file beside `path`; returns it and its descriptor.

    Unlike tempfile's, it has the user's usual mode. No link is followed.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}{TEMPORARY[2:]}")
    return temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def check_writable(path: str | Path, size: int = 0) -> None:
    """Raise OSError where `write_atomically` could not write `size` bytes now; names the file."""
    path = Path(os.path.realpath(path))
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary, descriptor = _temporary(path)
        try:
            if size:
                os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a disk that reserves nothing
            raise OSError(error.errno, error.strerror, str(path)) from error


def system_error(error: BaseException | None) -> OSError | None:
    """Return the OSError that an error is or hides: torch.save raises its own over one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def read_json(path: Path, remedy: str = OTHER_OUTPUT) -> dict[str, Any]:
    """Return the file's object; {} where there is no file.

    Raises:
        ValueError: it is there, but no JSON object; names the file and the remedy.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is no JSON: {error}; {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; {remedy}")
    return found


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as standard JSON, atomically: NaN and infinities, which JSON lacks, as null.

    Raises:
        OSError: see `write_atomically`.
    """
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_is_folder(path: str | Path, name: str) -> None:
    """Raise ValueError where `path` is no folder and cannot become one; the message calls it
    `name`."""
    for part in (Path(path), *Path(path).parents):
        if part.exists() and not part.is_dir():
            what = "which" if part == Path(path) else str(part)
            raise ValueError(f"{name} is {str(path)!r}, {what} is a file; it must be a folder")


def as_folder_name(name: str, what: str) -> str:
    """Return `name`, a single part of a path, so that what has it stays in the folder it is put in.

    Raises:
        ValueError: it is no such name; the message calls it `what`.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise ValueError(
            f"{what} {name!r}: a file or folder gets this name, so it must not be empty, '.' or "
            "'..', nor hold / or \\"
        )
    return name
