"""results.json: all that a study has measured; its schema is `templates/results.schema.json`."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..reporting.columns import Column, Result
from ..reporting.estimates import Estimate
from ..runtime.files import write_json
from .measures.registry import MEASURES
from .plan import Study
from .runs import Run
from .versions import versions

SCHEMA = 2


def collect(study: Study, runs: Sequence[Run], output: Path, command: str) -> dict[str, Any]:
    """Read what the runs measured so far, write results.json, and return it.

    Runs that are neither finished nor failed are not in it.
    """
    arms: dict[str, dict] = {
        arm.name: {"runs": [], "failed": [], "reference": arm.reference} for arm in study.arms
    }
    for run in runs:
        measured, status = run.measured, run.status()  # first: more may be measured meanwhile
        failed = not measured and status.get("state") == "failed"
        if failed:
            failure = {"seed": run.seed, "error": status.get("error"), "log": status.get("log")}
            arms[run.arm]["failed"].append(failure)
        measurements = run.measurements()
        if measured or (failed and measurements.get("measured")):
            arms[run.arm]["runs"].append(measurements)
    results = {
        "schema": SCHEMA,
        "study": dataclasses.asdict(study),
        "command": command,
        "versions": versions(),
        "arms": arms,
    }
    write_json(output / "results.json", results)
    return results


class Findings:
    """A results.json, looked up by arm, measure and column."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.study: dict[str, Any] = results["study"]
        self.versions: dict[str, str] = results.get("versions") or {}
        self.command: str = results.get("command") or ""
        self.arms: dict[str, dict[str, Any]] = results["arms"]

    @cached_property
    def measures(self) -> list[str]:
        """Names of what any run has measured, in the registry's order."""
        measured = {m for arm in self.arms.values() for run in arm["runs"] for m in run["measured"]}
        return [name for name in MEASURES if name in measured]

    @cached_property
    def columns(self) -> dict[str, tuple[str, Column]]:
        """Map the key of each column to its measure and itself."""
        options: dict[str, list[dict]] = {}
        for arm in self.arms.values():
            for run in arm["runs"]:
                for name, chosen in run["measured"].items():
                    if chosen not in options.setdefault(name, []):
                        options[name].append(chosen)
        return {
            column.key: (name, column)
            for name in self.measures
            for chosen in options[name]
            for column in MEASURES[name].all_columns(chosen)
        }

    @cached_property
    def shown(self) -> list[Column]:
        """The columns of the table: those that the study names, or those that measures show."""
        chosen = self.study.get("columns") or ()
        if chosen:
            return [self.columns[key][1] for key in chosen if key in self.columns]
        return [
            column
            for _, column in self.columns.values()
            if column.shown and any(self.estimate(arm, column.key) for arm in self.arms)
        ]

    def data_of(self, arm: str) -> tuple[Any, ...]:
        """Return DATASETS.TRAIN and TEST of an arm's options, None where the base says them."""
        listed = {each["name"]: each for each in self.study["arms"]}
        start = listed[arm].get("starts_from") or {}
        made_by = start.get("arm") or listed[arm].get("inference_of")
        names = [made_by, arm] if made_by else [arm]
        options = dict(self.study.get("options") or {})
        for name in names:
            options |= listed[name].get("options") or {}
        return options.get("DATASETS.TRAIN"), options.get("DATASETS.TEST")

    def of(self, arm: str, measure: str) -> list[Result]:
        """Return what the runs of an arm gave for a measure, seed by seed."""
        return [
            run["measures"][measure]
            for run in self.arms[arm]["runs"]
            if measure in run["measured"] and measure in run["measures"]
        ]

    def by_arm(self, measure: str) -> dict[str, list[Result]]:
        """Return the same for all arms that have measured it, in their order."""
        results = {arm: self.of(arm, measure) for arm in self.arms}
        return {arm: runs for arm, runs in results.items() if runs}

    def values(self, arm: str, key: str) -> dict[int, float]:
        """Map seeds to a column's value in the runs of an arm that have it."""
        if key not in self.columns:
            return {}
        measure, column = self.columns[key]
        return {
            run["seed"]: number
            for run in self.arms[arm]["runs"]
            if measure in run["measured"]
            and (number := column.number(run["measures"].get(measure, {}))) is not None
        }

    def estimate(self, arm: str, key: str) -> Estimate | None:
        """Estimate a column over the seeds of an arm."""
        if key not in self.columns:
            return None
        measure, column = self.columns[key]
        return column.estimate(self.of(arm, measure))
