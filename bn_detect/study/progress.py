"""How far a study is, what is left, and how long that takes."""

import statistics
import sys
import time
from collections.abc import Iterable, Sequence

from tabulate import tabulate
from tqdm import tqdm

from .metrics import read_metrics, seconds_per_iteration
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
        """How many runs are measured or failed."""
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
    """In [0, 1], of a run's time."""
    if run.measured:
        return 1.0
    measured = len(run.measurements().get("measured", ())) / len(run.measure)
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
    """What a study would do: a row per run, and an estimate of the time.

    The estimate comes from the finished and half-finished runs of the same study: seconds per
    iteration of the same arm, or else of all, and likewise for measuring, without the seconds that
    processes take to start. Before there is such a run it is `seconds_per_run`, measured elsewhere,
    or unknown.
    """
    rows = [(run, _state(run), _estimate(run, runs, seconds_per_run)) for run in runs]
    table = tabulate(
        [[run.arm, run.seed, _what(run), state, _spell(left)] for run, state, left in rows],
        headers=["arm", "seed", "checkpoint", "state", "left"],
    )
    left = [seconds for _, _, seconds in rows]
    total = None if None in left else sum(left) / jobs
    source = "" if total is None or _measured(runs) else " (seconds_per_run of the study's file)"
    return f"{table}\n\n{len(runs)} runs, {jobs} at once; time left: {_spell(total)}{source}"


def _what(run: Run) -> str:
    if run.trains:
        return f"trained, {run.iterations} iterations"
    return f"reused: {run.identity()['weights']}"


def _state(run: Run) -> str:
    if run.measured:
        return "measured"
    missing = set(run.measure) - set(run.measurements().get("measured", ()))
    to_do = "to measure: " + ", ".join(name for name in run.measure if name in missing)
    if run.trained or not run.trains:
        return to_do
    done = run.iterations_done()
    begun = f"trained for {done} iterations" if done else "new"
    return f"failed; {begun}" if run.status().get("state") == "failed" else begun


def _estimate(run: Run, runs: Sequence[Run], elsewhere: float | None) -> float | None:
    """Seconds that are left of a run; None where nothing is known."""
    if run.measured:
        return 0.0
    done = _measured(runs)
    measuring = _mean(run, {r: r.measurements()["measure_seconds"] for r in done})
    if measuring is None:
        return None if elsewhere is None else elsewhere * (1 - share_done(run))
    if run.trained or not run.trains:
        return measuring
    times = {r: seconds_per_iteration(read_metrics(r.folder / "metrics.json")) for r in runs}
    training = _mean(run, {r: time for r, time in times.items() if time is not None})
    if training is None:
        return None
    return measuring + training * max(0, run.iterations - run.iterations_done())


def _measured(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.measured]


def _mean(run: Run, known: dict[Run, float]) -> float | None:
    """Of the runs of the same arm; else of all; else None."""
    same: Iterable[float] = [value for r, value in known.items() if r.arm == run.arm]
    values = list(same) or list(known.values())
    return statistics.fmean(values) if values else None


def _spell(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds:.0f} s" if seconds < 120 else tqdm.format_interval(seconds)
