"""results.json: all that a study has measured.

{"schema": 1,
 "study": the study's file, resolved (`plan.Study`),
 "command": how to repeat it,
 "versions": `versions.versions`,
 "arms": {NAME: {"runs": [measurements.json of each finished run],
                 "failed": [{"seed", "error", "log"}],
                 "reference": {COLUMN: value}}}}

measurements.json, which `measure` writes, of one run:

{"arm", "seed": which run,
 "test_stats": its MODEL.ROI_BN.TEST_STATS,
 "iterations": of its training; 0 where it trained nothing,
 "train_seconds", "measure_seconds": how long both took,
 "training": {LOSS: mean over the last tenth} (`metrics.training_summary`),
 "curves": {"iteration": [...], LOSS: [...]} (`metrics.training_curves`),
 "evaluation": {KIND: {DATASET: {TASK: {METRIC: value}}}}, KIND of `evaluation.EVAL_STATS`,
 "classes": names, where there is a probe,
 "probes": {NAME: the fields of its report}, NAME of `subject.PROBES`,
 "measured": what is complete, of `plan.MEASURES`}
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.files import write_json
from .plan import Study
from .runs import Run
from .versions import versions

SCHEMA = 1


def collect(study: Study, runs: Sequence[Run], output: Path, command: str) -> dict[str, Any]:
    """Read what the runs measured so far, write results.json, and return it.

    Runs that are neither finished nor failed are not in it.
    """
    arms: dict[str, dict] = {
        arm.name: {"runs": [], "failed": [], "reference": arm.reference} for arm in study.arms
    }
    for run in runs:
        status = run.status()
        if run.measured:
            arms[run.arm]["runs"].append(run.measurements())
        elif status.get("state") == "failed":
            failure = {"seed": run.seed, "error": status["error"], "log": status["log"]}
            arms[run.arm]["failed"].append(failure)
    results = {
        "schema": SCHEMA,
        "study": dataclasses.asdict(study),
        "command": command,
        "versions": versions(),
        "arms": arms,
    }
    write_json(output / "results.json", results)
    return results
