"""One run of a study by itself, so that any scheduler can do the runs of a study."""

import difflib
import sys
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

from ..plan import Study
from ..progress import Progress
from ..runs import Run
from .pool import Group, run_here


def find_run(name: str, study: Study, groups: Sequence[Group]) -> Run:
    """Return the run that `--only ARM/SEED` means; ARM is an arm's name, or that of its folder.

    Raises:
        ValueError: there is no such run, or the run whose checkpoint it takes is still to be done.
    """
    runs = {(study.arm(run.arm).slug, run.seed): run for run in chain.from_iterable(groups)}
    names = {slug: f"{slug}/{seed}" for slug, seed in runs}
    arm, _, seed = name.rpartition("/")
    slug = next((each.slug for each in study.arms if arm in (each.name, each.slug)), arm)
    run = runs.get((slug, int(seed))) if seed.isdecimal() else None
    if run is None:
        near = difflib.get_close_matches(slug, names, n=1)
        advice = f"; did you mean {names[near[0]]}?" if near else ""
        raise ValueError(
            f"--only is {name!r}; it must be ARM/SEED with an arm of {', '.join(names)} and a seed "
            f"from 1 to {study.seeds}{advice}"
        )
    needed = run.start or ("" if run.trains else run.weights)
    parent = study.arm(run.arm).parent
    if parent and not Path(needed).is_file():
        raise ValueError(
            f"--only {name}: it takes the checkpoint of arm {parent!r}, which is not there yet; do "
            f"--only {study.arm(parent).slug}/{seed} first"
        )
    return run


def run_alone(run: Run) -> int:
    """Carry out what is missing of a run; return the exit code."""
    with closing(Progress([run])) as progress:
        run_here([[run]], 1, progress.update)
    if run.measured:
        print(f"{run.label}: measured in {run.folder}; the study without --only reports")
        return 0
    print(f"failed: {run.label}, log {run.status().get('log')}", file=sys.stderr)
    return 1
