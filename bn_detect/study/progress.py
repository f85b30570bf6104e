"""The progress of a study: how far it is, what is left, and how long that takes."""

import statistics
import sys
import time
from collections.abc import Iterable, Sequence

from tabulate import tabulate
from tqdm import tqdm

from .measures.metrics import read_metrics, seconds_per_iteration
from .runs import Run

MEASURING = 0.3  # share of a run's time
SECONDS_ON_SCREEN, SECONDS_IN_LOG = 1.0, 60.0  # between two pictures of the bar


class Progress:
    """A bar over the whole study with an ETA, and a line for each run that ends."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._ended = {run.folder for run in runs if run.measured}
        self._drawn = 0.0
        self._bar = tqdm(
            total=len(runs),
            initial=self._done(),
            smoothing=0,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}",
        )

    @property
    def ended(self) -> int:
        """Return how many runs are measured or failed."""
        return len(self._ended)

    def update(self) -> int:
        """Look at the run folders; returns how many runs have ended."""
        for run in self._runs:
            state = run.status().get("state")
            if run.folder not in self._ended and state in ("measured", "failed"):
                self._ended.add(run.folder)
                self._bar.write(f"{run.label}: {_outcome(run)}")
        self._bar.set_description_str(f"{len(self._ended)} of {len(self._runs)} runs", False)
        self._bar.set_postfix_str("; ".join(filter(None, map(_doing, self._runs))), False)
        every = SECONDS_ON_SCREEN if sys.stderr.isatty() else SECONDS_IN_LOG
        if time.monotonic() - self._drawn >= every or self.ended == len(self._runs):
            self._bar.n, self._drawn = self._done(), time.monotonic()
            self._bar.refresh()
        return self.ended

    def close(self) -> None:
        self._bar.close()

    def _done(self) -> float:
        return sum(1.0 if run.folder in self._ended else share_done(run) for run in self._runs)


def share_done(run: Run) -> float:
    """Return the share of a run's time that has passed, in [0, 1]."""
    if run.measured:
        return 1.0
    measured = 1 - len(run.missing()) / len(run.measure)
    if not run.trains:
        return measured
    if run.trained:
        return 1 - MEASURING * (1 - measured)
    return (1 - MEASURING) * min(1.0, run.iterations_done() / run.iterations)


def _outcome(run: Run) -> str:
    status = run.status()
    if status["state"] == "failed":
        return f"FAILED\n{status['error']}\n(log: {status['log']})"
    found = run.measurements()
    trained = f"trained in {found['train_seconds']:.0f} s, " if run.trains else ""
    return f"{trained}measured in {found['measure_seconds']:.0f} s"


def _doing(run: Run) -> str:
    state = run.status().get("state")
    if state == "training":
        return f"{run.label}: {run.iterations_done()} of {run.iterations} iterations"
    return f"{run.label}: {state}" if state == "measuring" else ""


def plan_table(runs: Sequence[Run], jobs: int, seconds_per_run: float | None = None) -> str:
    """Return the plan of a study as a table: a row per run, and an estimate of the time.

    The estimate comes from the finished and half-finished runs of the same study: seconds per
    iteration of the same arm, or else of all, and likewise for measuring, without the seconds that
    processes take to start. Before there is such a run it is `seconds_per_run`, measured elsewhere,
    or unknown.
    """
    estimate = _Estimate(runs, seconds_per_run)
    rows = [(run, _state(run), estimate.of(run)) for run in runs]
    table = tabulate(
        [[run.arm, run.seed, _what(run), state, _spell(left)] for run, state, left in rows],
        headers=["arm", "seed", "checkpoint", "state", "left"],
    )
    left = [seconds for _, _, seconds in rows]
    # However many run at once, it takes as long as the longest one.
    known = [seconds for seconds in left if seconds is not None]
    total = max(sum(known) / jobs, *known) if len(known) == len(left) else None
    source = "" if total is None or estimate.measuring else " (seconds_per_run of the study's file)"
    return f"{table}\n\n{len(runs)} runs, {jobs} at once; time left: {_spell(total)}{source}"


def _what(run: Run) -> str:
    if run.trains:
        return f"trained, {run.iterations} iterations"
    return f"reused: {run.identity()['weights']}"


def _state(run: Run) -> str:
    if run.measured:
        return "measured"
    to_do = "to measure: " + ", ".join(run.missing())
    if run.trained or not run.trains:
        return to_do
    done = run.iterations_done()
    begun = f"trained for {done} iterations" if done else "new"
    return f"failed; {begun}" if run.status().get("state") == "failed" else begun


class _Estimate:
    """Durations of runs, by those that are done; each folder is read once."""

    def __init__(self, runs: Sequence[Run], elsewhere: float | None) -> None:
        self._elsewhere = elsewhere
        self.measuring = {r: r.measurements()["measure_seconds"] for r in runs if r.measured}
        times = {r: seconds_per_iteration(read_metrics(r.folder / "metrics.json")) for r in runs}
        self._iteration = {run: time for run, time in times.items() if time is not None}

    def of(self, run: Run) -> float | None:
        """Return the seconds that are left of a run; None where nothing is known."""
        if run in self.measuring:
            return 0.0
        measuring = _mean(run, self.measuring)
        if measuring is None:
            return None if self._elsewhere is None else self._elsewhere * (1 - share_done(run))
        if run.trained or not run.trains:
            return measuring
        training = _mean(run, self._iteration)
        if training is None:
            return None
        return measuring + training * max(0, run.iterations - run.iterations_done())


def _mean(run: Run, known: dict[Run, float]) -> float | None:
    """Return the mean of the runs of the same arm; else of all; else None."""
    same: Iterable[float] = [value for r, value in known.items() if r.arm == run.arm]
    values = list(same) or list(known.values())
    return statistics.fmean(values) if values else None


def _spell(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds:.0f} s" if seconds < 120 else tqdm.format_interval(seconds)
