"""Run Python in a fresh process, in which nothing is imported yet."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the interpreter of the tests in the root of the repository; it must end with `code`."""
    command = [sys.executable, "-W", "ignore", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done
