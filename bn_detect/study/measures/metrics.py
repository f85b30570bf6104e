"""Read metrics.json, which Detectron2 writes while it trains: one JSON object a line."""

import json
import statistics
from pathlib import Path

MAX_POINTS = 200
TAIL = 1 << 16  # bytes that hold the last record for certain
_ALWAYS = ("iteration", "total_loss")  # in the record of an iteration
LAST = 0.1  # share of the iterations that the final losses are means of


def read_metrics(path: Path) -> list[dict]:
    """The records of training iterations, ascending.

    A run that was killed and resumed wrote some iterations twice, of which the later counts, and
    perhaps a line that is cut off, which does not.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = [record for line in lines if (record := _record(line)) is not None]
    records = {record["iteration"]: record for record in found}
    return [records[iteration] for iteration in sorted(records)]


def latest(path: Path) -> dict:
    """The last complete record of a training iteration, {} before there is one."""
    if not path.exists():
        return {}
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().splitlines()
    return next((record for line in reversed(lines) if (record := _record(line)) is not None), {})


def _record(line: bytes) -> dict | None:
    """Return the record of a training iteration; None for another, or a line that is cut off."""
    try:
        record = json.loads(line)
    except (RecursionError, ValueError):
        return None
    numbers = isinstance(record, dict) and {type(record.get(key)) for key in _ALWAYS}
    return record if numbers and numbers <= {int, float} else None


def seconds_per_iteration(records: list[dict]) -> float | None:
    """Mean over the run; None of no record."""
    times = [record["time"] for record in records if "time" in record]
    return statistics.fmean(times) if times else None


def training_summary(records: list[dict]) -> dict[str, float]:
    """Mean of each loss, and of the accuracy on foreground RoIs, over the last tenth of the run."""
    if not records:
        return {}
    begin = (1 - LAST) * (records[-1]["iteration"] + 1)
    last = [record for record in records if record["iteration"] + 1 >= begin]
    return {name: statistics.fmean(r[key] for r in last) for name, key in _kept(last).items()}


def training_curves(records: list[dict]) -> dict[str, list[float]]:
    """`iteration` and the same quantities over the run, at most MAX_POINTS of them."""
    step = -(-len(records) // MAX_POINTS) or 1
    records = records[::-1][::step][::-1]  # the last one is among them
    names = _kept(records)
    curves = {name: [r[key] for r in records] for name, key in names.items()}
    return {"iteration": [r["iteration"] for r in records], **curves} if records else {}


def _kept(records: list[dict]) -> dict[str, str]:
    """Short names of what all of the records have, with Detectron2's."""
    keys = [key for key in records[0] if all(key in r for r in records)] if records else []
    named = {key: key for key in keys if "loss" in key}
    accuracy = "fast_rcnn/fg_cls_accuracy"
    return named | ({"fg_cls_accuracy": accuracy} if accuracy in keys else {})
