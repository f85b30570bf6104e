"""Remember that a large dataset passed the check, so that the next start need not repeat it."""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...runtime.files import write_json
from .needs import Needs
from .summary import DatasetSummary

VERSION = 2  # raised when the check looks at more than before


def check_key(name: str, json_file: Path, image_root: Path, needs: Needs) -> dict[str, Any]:
    """Return what a successful check depends on.

    It changes with the JSON and the use of the dataset, and when images are added to the folder or
    removed from it, but not when an image is overwritten in place.
    """
    return {
        "version": VERSION,
        "name": name,
        "needs": asdict(needs),
        "json_file": str(json_file.resolve()),
        "size": json_file.stat().st_size,
        "mtime_ns": json_file.stat().st_mtime_ns,
        "image_root": str(image_root.resolve()),
        "image_root_mtime_ns": image_root.stat().st_mtime_ns,
    }


def recall(key: dict[str, Any]) -> DatasetSummary | None:
    """Return the summary remembered for `key`, or None."""
    try:
        summary = json.loads(_file(key).read_text())["summary"]
    except (OSError, ValueError, KeyError):
        return None
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in summary.items()}
    return DatasetSummary(**values)


def remember(key: dict[str, Any], summary: DatasetSummary) -> None:
    """Keep `summary` for `key`, or do nothing if the cache cannot be written."""
    with contextlib.suppress(OSError):
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"key": key, "summary": asdict(summary)})


def _file(key: dict[str, Any]) -> Path:
    """Return the file in the user's cache directory (XDG base directory specification).

    Raises:
        OSError: HOME is unset, and the user has no home directory.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not cache.is_absolute():
        raise FileNotFoundError(f"there is no cache directory {cache}")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache / "bn_detect" / "checked_datasets" / f"{digest}.json"
