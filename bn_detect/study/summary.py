"""What a study found, arm by arm: numbers with intervals, and a verdict in one sentence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from .estimates import Estimate, over_seeds, with_interval

Run = dict[str, Any]  # a measurements.json


@dataclass(frozen=True)
class Column:
    """One quantity of the table.

    Attributes:
        key: to look it up. header: with its unit. digits: after the point.
        of: from the runs of an arm and the kind of its test statistics; None where not measured.
    """

    key: str
    header: str
    digits: int
    of: Callable[[list[Run], str], Estimate | None]


def _scalar(*path: str) -> Callable[[list[Run], str], Estimate | None]:
    def of(runs: list[Run], kind: str) -> Estimate | None:
        return over_seeds([v for run in runs if (v := _get(run, *path)) is not None])

    return of


def _interval(*path: str) -> Callable[[list[Run], str], Estimate | None]:
    def of(runs: list[Run], kind: str) -> Estimate | None:
        return with_interval([v for run in runs if (v := _get(run, "probes", *path)) is not None])

    return of


def _ap(task: str, metric: str, under: str | None = None):
    def of(runs: list[Run], kind: str) -> Estimate | None:
        found = [evaluation(run, under or kind, task, metric) for run in runs]
        return over_seeds([value for value in found if value is not None])

    return of


def _most_bits(runs: list[Run], kind: str) -> Estimate | None:
    """Of the layer whose statistics tell most."""
    found = [_get(run, "probes", "statistics_probe", "layers") for run in runs]
    return over_seeds([max(layer["bits"] for layer in layers) for layers in found if layers])


COLUMNS = (
    Column("box AP", "box AP", 1, _ap("bbox", "AP")),
    Column("mask AP", "mask AP", 1, _ap("segm", "AP")),
    Column("AP50", "box AP50", 1, _ap("bbox", "AP50")),
    Column("precise AP", "box AP, PreciseBN", 1, _ap("bbox", "AP", "precise")),
    Column("minibatch AP", "box AP, mini-batch", 1, _ap("bbox", "AP", "minibatch")),
    Column("swap", "swap (nats)", 3, _interval("companion_swap", "classification", "change")),
    Column("null", "resampled (nats)", 3, _interval("companion_swap", "classification", "null")),
    Column("flips", "flipped", 3, _interval("companion_swap", "flip_rate")),
    Column("minibatch AP50", "box AP50, mini-batch", 1, _ap("bbox", "AP50", "minibatch")),
    Column("loss", "training loss (class)", 2, _scalar("training", "loss_cls")),
    Column("gradient", "gradient on own image", 3, _interval("cross_roi_jacobian", "same_image")),
    Column("bits", "bits in statistics", 3, _most_bits),
)


@dataclass(frozen=True)
class ArmSummary:
    """One row of the report.

    Attributes:
        name: of the arm. seeds: of its finished runs. failed: {seed, error, log} of the others.
        found: what was measured, by Column.key.
        reference: what the study's file says others found, by column header.
        leaks: whether most of its runs do (`run_leaks`); None where the companion swap was not
            measured.
        verdict: one sentence.
    """

    name: str
    seeds: tuple[int, ...]
    failed: tuple[dict, ...]
    found: dict[str, Estimate]
    reference: dict[str, float]
    leaks: bool | None
    verdict: str


def summarize(results: dict) -> list[ArmSummary]:
    """The arms of a results.json, in the study's order."""
    options = {arm["name"]: arm.get("options") or {} for arm in results["study"]["arms"]}
    found = {}
    for name, arm in results["arms"].items():
        kind = _test_stats(arm["runs"], options.get(name, {}))
        every = {column.key: column.of(arm["runs"], kind) for column in COLUMNS}
        found[name] = {key: value for key, value in every.items() if value is not None}
    leaking = {
        name: [leak for run in arm["runs"] if (leak := run_leaks(run)) is not None]
        for name, arm in results["arms"].items()
    }
    clean = [name for name, runs in leaking.items() if runs and not _most(runs)]
    return [
        ArmSummary(
            name,
            tuple(run["seed"] for run in arm["runs"]),
            tuple(arm["failed"]),
            found[name],
            arm.get("reference") or {},
            _most(leaking[name]) if leaking[name] else None,
            _verdict(name, found, leaking[name], clean),
        )
        for name, arm in results["arms"].items()
    ]


def _test_stats(runs: list[Run], options: dict[str, Any]) -> str:
    """What normalizes an arm at inference; old runs do not record it."""
    recorded = [run["test_stats"] for run in runs if "test_stats" in run]
    return recorded[0] if recorded else options.get("MODEL.ROI_BN.TEST_STATS", "population")


def run_leaks(run: Run) -> bool | None:
    """Whether swapping companions raises the loss by more than nothing, and than resampling them.

    "More" is by the 95% intervals over images. None where it was not measured.
    """
    swap = _get(run, "probes", "companion_swap", "classification", "change")
    null = _get(run, "probes", "companion_swap", "classification", "null")
    if swap is None:
        return None
    return swap["low"] > (max(0.0, null["high"]) if null else 0.0)


def _most(leaking: list[bool]) -> bool:
    return 2 * sum(leaking) > len(leaking)


def _verdict(name: str, found: dict, leaking: list[bool], clean: list[str]) -> str:
    if not leaking:
        return "not probed"
    swap = found[name]["swap"]
    size = f"{swap.mean:.3f} nats"
    if swap.low == swap.low:
        size += f" [{swap.low:.3f}, {swap.high:.3f}]"
    leaks, several = _most(leaking), len(leaking) > 1
    agree = sum(leaking) if leaks else len(leaking) - sum(leaking)
    share = f" in {agree} of {len(leaking)} runs" if several and agree < len(leaking) else ""
    if not leaks:
        return f"no leak found{share}: {size}"
    # What takes AP away is no repair.
    aps = {arm: found[arm].get("box AP") for arm in (name, *clean)}
    cures = [arm for arm in clean if not _below(aps[arm], aps[name])]
    cure = f"; repaired by {', '.join(cures)}" if cures else ""
    return f"leaks{share}: {size}{cure}"


def _below(one: Estimate | None, other: Estimate | None) -> bool:
    """By the intervals; of one seed, which has none, by more than a twentieth."""
    if one is None or other is None:
        return False
    if one.high == one.high and other.low == other.low:
        return one.high < other.low
    return one.mean < 0.95 * other.mean


def evaluation(run: Run, kind: str, task: str, metric: str) -> float | None:
    """On the first dataset of a run, in percent."""
    datasets = _get(run, "evaluation", kind) or {}
    return next((_get(tasks, task, metric) for tasks in datasets.values()), None)


def _get(tree: Any, *path: str) -> Any:
    """What is there, or None; None also of an interval that is null, for want of any RoI."""
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    is_null = isinstance(tree, dict) and "mean" in tree and tree["mean"] is None
    return None if is_null else tree


def table(arms: list[ArmSummary], tablefmt: str = "simple") -> str:
    """The table of the terminal and of table.md; a cell is mean ± spread [95% interval]."""
    headers, rows = cells(arms, "\n" if tablefmt == "simple" else " ")
    return tabulate(rows, headers=headers, tablefmt=tablefmt, disable_numparse=True)


def verdicts(arms: list[ArmSummary]) -> str:
    """The verdict on each arm, for the terminal."""
    question = "Does a head read a RoI's companions? The change of its loss as they are swapped:"
    return f"{question}\n" + tabulate([[a.name, a.verdict] for a in arms], tablefmt="plain")


def cells(arms: list[ArmSummary], between: str = " ") -> tuple[list[str], list[list[str]]]:
    """Headers, and a row of texts per arm; columns that no arm measured are left out.

    Args:
        between: separates a mean from its interval.
    """
    columns = [c for c in COLUMNS if any(c.key in arm.found for arm in arms)]
    references = list(dict.fromkeys(key for arm in arms for key in arm.reference))
    headers = ["arm", "seeds", *(c.header for c in columns)]
    headers += [f"{key}, reference" for key in references]
    rows = []
    for arm in arms:
        found = [(arm.found.get(c.key), c.digits) for c in columns]
        texts = ["" if e is None else e.text(digits, between) for e, digits in found]
        known = [str(arm.reference.get(key, "")) for key in references]
        rows.append([arm.name, _seeds(arm), *texts, *known])
    return headers, rows


def _seeds(arm: ArmSummary) -> str:
    if not arm.seeds and not arm.failed:
        return "not run"
    return f"{len(arm.seeds)}" + (f" ({len(arm.failed)} failed)" if arm.failed else "")
