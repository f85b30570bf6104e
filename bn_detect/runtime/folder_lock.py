"""Let one process at a time work in a folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import FolderInUse
from .files import TEMPORARY


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made if missing); wait while another process has
    it. The system frees it when the process ends, killed or not."""
    with open_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_lock(path: Path) -> IO[str]:
    """Open a file to lock it, made if missing; a link in its place is refused, not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    try:
        return open(path, "r+", opener=lambda name, _: os.open(name, flags, 0o666))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "a lock must not be a link; remove it", str(path)) from error


@contextlib.contextmanager
def sole_user(folder: str | Path, name: str) -> Iterator[None]:
    """Keep other processes out of a folder (made if missing) that `sole_user` guards there too.

    Files that a killed process left half written are removed. On a file system without locks
    nothing is guarded.

    Args:
        folder: such as a run's OUTPUT_DIR.
        name: how the message calls it, such as "OUTPUT_DIR".

    Raises:
        FolderInUse: another process is in it; names the folder and the process.
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / ".in_use") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = " ".join(file.read(200).split()) or "another process"
            raise FolderInUse(
                f"{name} {folder} is in use by {who}; wait for its end, or use another folder"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for left in folder.glob(TEMPORARY):
            left.unlink(missing_ok=True)
        yield
