"""Folders of datasets that are made once, whole or not at all, with a record of how."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..runtime.folder_lock import folder_lock
from .errors import DatasetError

RECORD = "prepared.json"


def default_root() -> Path:
    """Return $DETECTRON2_DATASETS, or ./datasets: where Detectron2 looks for datasets."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def prepare_folder(
    target: Path,
    kind: str,
    recipe: int,
    options: dict[str, Any],
    build: Callable[[Path], dict[str, Any]],
    *,
    force: bool = False,
) -> bool:
    """Make the folder `target` by `build`, unless it is there already.

    It is built in a hidden folder beside its place and moved there when complete, so a run that is
    killed leaves nothing half made. Of several runs at once, one prepares and the others wait.

    Args:
        kind: kept in the record, which says by it how the dataset is registered.
        recipe: a number that is raised when the same options give other files than before.
        options: values that JSON can hold; kept in the record.
        build: fills the folder it is given and returns further entries of the record.
        force: rebuild what was prepared before, whatever its options.

    Returns:
        whether it was made now. False means that it was there, with the same options.

    Raises:
        DatasetError: it is there with other options, or the place is taken by something else.
        OSError: it cannot be written, say for lack of space; what was there before is intact.
    """
    wanted = {"kind": kind, "recipe": recipe, "options": options}
    target.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock(target.with_name(f".{target.name}.lock")):
        if target.exists() and _is_prepared(target, wanted, force):
            return False
        with _replacing(target) as building:
            record = {**wanted, **build(building)}
            (building / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return True


def _is_prepared(target: Path, wanted: dict[str, Any], force: bool) -> bool:
    """Return whether `target` is what is wanted; raise where it must not be replaced."""
    if not (target / RECORD).is_file():
        raise DatasetError(
            f"{target} was not made by `bn-detect data` (it has no {RECORD}): "
            f"move it away or choose another --root"
        )
    if force:
        return False
    found = read_record(target)
    if any(found.get(key) != value for key, value in wanted.items()):
        raise DatasetError(
            f"{target} was prepared with {_spell(found)}, not with {_spell(wanted)}: "
            f"--force rebuilds it"
        )
    return True


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a prepared folder.

    Raises:
        DatasetError: it is no JSON object with options, or cannot be read.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        record["options"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{folder / RECORD} is not the record of a prepared dataset ({error}): "
            "prepare it anew with --force"
        ) from error
    return record


def _spell(record: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in record["options"].items())
    return f"{options} ({record.get('kind')}, recipe {record.get('recipe')})"


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of `target` if the block ends without an error."""
    building, old = (target.with_name(f".{target.name}.{what}") for what in ("building", "old"))
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    try:
        yield building
        if target.exists():
            target.rename(old)
        try:
            building.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        message = f"{error.strerror or error}; what was there before is intact"
        raise OSError(error.errno, message, error.filename or str(building)) from error
    finally:
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)
