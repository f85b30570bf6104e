"""The folders of a study's runs on disk: prepared, compared with the plan, locked, deleted."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2
import yaml

from ..configuration.keys import default_config
from ..configuration.values import flat_keys
from ..runtime.files import OTHER_OUTPUT, read_json, write_json, write_text
from ..runtime.folder_lock import open_lock
from .measures.registry import MEASURES
from .runs import Run

# Where and how fast a run is done; its results are the same.
_OF_THE_MACHINE = ("MODEL.DEVICE", "DATALOADER.NUM_WORKERS")
_NUMBERS = ("seed", "iterations", "train_seconds", "measure_seconds")  # of measurements.json
OR_FORCE = f"{OTHER_OUTPUT}, or --force to run it anew"


def check_folders(runs: Sequence[Run], remedy: str = OTHER_OUTPUT) -> None:
    """Raise ValueError where a folder holds a run with other settings, or something else.

    Args:
        remedy: what the command that asks can do about it, for the end of the message.
    """
    defaults = dict(flat_keys(yaml.safe_load(default_config().dump())))
    for run in runs:
        before = read_json(run.folder / "run.json", remedy)
        if not before:
            continue
        for name in ("measurements.json", "status.json", "versions.json"):
            read_json(run.folder / name, remedy)
        measured = run.measurements()
        if measured and not _are_measurements(measured, run):
            raise ValueError(f"{run.folder / 'measurements.json'} holds something else; {remedy}")
        same = run.identity()
        old = dict(flat_keys({key: before.get(key) for key in same} | _settings(run, remedy)))
        new = dict(flat_keys(same | yaml.safe_load(run.settings)))
        for name, options in measured.get("started", {}).items():
            measure = MEASURES.get(name)
            if (
                measure
                and measure.grows
                and not measure.keeps(options, run.measure.get(name, options))
            ):
                raise ValueError(
                    f"{run.folder} was measured with other options of {name}: {options}; {remedy}"
                )
        differences = [
            f"{key} {old.get(key)!r}, not {new.get(key)!r}"
            for key in sorted(old | new)
            if key not in _OF_THE_MACHINE
            and old.get(key, defaults.get(key)) != new.get(key, defaults.get(key))
        ]
        if differences:
            raise ValueError(
                f"{run.folder} holds a run with other settings ({'; '.join(differences[:3])})"
                f"{_made_with(run, old.keys() - new.keys())}; {remedy}"
            )


def _are_measurements(content: dict[str, Any], run: Run) -> bool:
    """Return whether `content` is of the form that `Measurements` writes, and of this run."""
    if not all(isinstance(content.get(key), int | float) for key in _NUMBERS):
        return False
    parts = [content.get(key) for key in ("measures", "started", "measured")]
    options = [value for part in parts if isinstance(part, dict) for value in part.values()]
    if not all(isinstance(part, dict) for part in parts):
        return False
    return content.get("arm") == run.arm and all(isinstance(value, dict) for value in options)


def _settings(run: Run, remedy: str) -> dict[str, Any]:
    path = run.folder / "settings.yaml"
    try:
        kept = yaml.safe_load(path.read_text())
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: {reason}; {remedy}") from error
    if not isinstance(kept, dict):
        raise ValueError(f"{path} holds no settings; {remedy}")
    return kept


def _made_with(run: Run, unknown: set[str]) -> str:
    """Name the versions, where the run knows keys that are not known here."""
    versions = read_json(run.folder / "versions.json")
    first = next(iter(versions.values()), None)
    made = first.get("detectron2") if isinstance(first, dict) else None
    if not unknown or made is None:
        return ""
    return f"; it was made with Detectron2 {made}, and here is {detectron2.__version__}"


def prepare_folders(runs: Sequence[Run]) -> None:
    """Make the folders that are not there yet, so that each says by itself what is to be done."""
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_text(run.folder / "settings.yaml", run.settings)
        more: dict[str, Any] = {"processes": run.processes, "measure": run.measure}
        more |= {"imports": run.imports, "trust": run.trust, "train_options": run.train_options}
        write_json(run.folder / "run.json", run.identity() | more)
        if run.status().get("state") == "failed":  # it gets another try
            run.set_status("waiting")


def forget(runs: Sequence[Run]) -> None:
    """Delete what the runs have done.

    Raises:
        ValueError: another process is at one of them; then nothing is deleted.
    """
    for run in runs:
        with contextlib.suppress(FileNotFoundError), locked(run.folder / ".lock") as free:
            if not free:
                raise ValueError(f"--force: another process is at the run in {run.folder}")
    for run in runs:
        shutil.rmtree(run.folder, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file for this process, if no other has it; yields whether it could be locked."""
    with open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
