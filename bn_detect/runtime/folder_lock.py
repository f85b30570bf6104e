"""Let one process at a time work in a folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .errors import FolderInUse
from .files import TEMPORARY


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made if missing); wait while another process has
    it. The system frees it when the process ends, killed or not."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    with open(folder / ".in_use", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
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
