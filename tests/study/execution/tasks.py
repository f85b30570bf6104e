"""Steps that a pool can run in place of training: what is tested is how they start and end."""

import os
import signal
import time
from pathlib import Path


def note(folder: Path) -> None:
    """Append this process's id and its threads to a file beside the run's folder."""
    with open(folder.parent / "pids", "a") as file:
        file.write(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")


def stay(folder: Path) -> None:
    note(folder)
    time.sleep(100)


def die(folder: Path) -> None:
    for i in range(100):
        print("line", i, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(folder: Path) -> None:
    raise ValueError(f"{folder.name} cannot work")


def look(folder: Path) -> None:
    """Write what a step sees of its surroundings."""
    seen = f"{os.environ.get('MARK')} {'WORLD_SIZE' in os.environ} {os.getsid(0) == os.getpid()}"
    (folder / "seen").write_text(seen)


def stay_whatever_comes(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay(folder)
