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
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as standard JSON, atomically: NaN and infinities, which JSON lacks, as null."""
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
