"""Workers whose interpreter aborts when it is torn down; what they wrote before must count."""

import atexit
import os
import sys
from datetime import timedelta
from pathlib import Path

from bn_detect.runtime.launch import launch


class Aborts:
    def __del__(self) -> None:
        os.abort()


def main(folder: str) -> None:
    rank = os.environ.get("RANK", str(os.getpid()))
    atexit.register(lambda: Path(folder, rank).write_text("at exit"))
    sys.modules["aborts"] = Aborts()  # type: ignore[assignment]  # until the modules are torn down
    print("the work is done")


if __name__ == "__main__":
    launch(main, 2, timeout=timedelta(seconds=60), args=(sys.argv[1],))
