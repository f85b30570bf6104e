"""Remember that a large dataset was found in order, so that the next start need not look again."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .summary import DatasetSummary

VERSION = 1  # raised when the check looks at more than before


def check_key(name: str, json_file: Path, image_root: Path) -> dict[str, Any]:
    """What a successful check stands for. It changes with the JSON, and when images are added to
    or removed from the folder; not when one is overwritten in place."""
    return {
        "version": VERSION,
        "name": name,
        "json_file": str(json_file.resolve()),
        "size": json_file.stat().st_size,
        "mtime_ns": json_file.stat().st_mtime_ns,
        "image_root": str(image_root.resolve()),
        "image_root_mtime_ns": image_root.stat().st_mtime_ns,
    }


def recall(key: dict[str, Any]) -> DatasetSummary | None:
    """The summary remembered for `key`, if there is one."""
    try:
        summary = json.loads(_file(key).read_text())["summary"]
    except (OSError, ValueError, KeyError):
        return None
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in summary.items()}
    return DatasetSummary(**values)


def remember(key: dict[str, Any], summary: DatasetSummary) -> None:
    """Keep `summary` for `key`; where the cache cannot be written, do nothing."""
    file = _file(key)
    unfinished = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"key": key, "summary": asdict(summary)}, indent=2))
        unfinished.replace(file)
    except OSError:
        pass


def _file(key: dict[str, Any]) -> Path:
    """In the user's cache directory, as the XDG base directory specification has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache / "bn_detect" / "checked_datasets" / f"{digest}.json"
