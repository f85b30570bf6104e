"""The table of a study, a row for each arm, and its verdicts: on leaks, and on its claims."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ..reporting.estimates import Estimate, difference
from .results import Findings


def cells(findings: Findings, between: str = " ") -> tuple[list[str], list[list[str]]]:
    """Return headers, and a row of texts per arm; columns that no arm measured are left out.

    Args:
        between: separates a mean from its interval.
    """
    references = list(
        dict.fromkeys(key for arm in findings.arms.values() for key in arm.get("reference") or {})
    )
    headers = ["arm", "seeds", *(column.header for column in findings.shown)]
    headers += [f"{key}, reference" for key in references]
    rows = []
    for name, arm in findings.arms.items():
        estimates = [(findings.estimate(name, c.key), c.digits) for c in findings.shown]
        texts = ["" if e is None else e.text(digits, between) for e, digits in estimates]
        known = [str((arm.get("reference") or {}).get(key, "")) for key in references]
        rows.append([name, _seeds(arm), *texts, *known])
    return headers, rows


def _seeds(arm: dict) -> str:
    failed = len(arm["failed"])
    seeds = {run["seed"] for run in arm["runs"]}
    whole = len(seeds - {failure["seed"] for failure in arm["failed"]})
    if not seeds and not failed:
        return "not run"
    return f"{whole}" + (f" ({failed} failed)" if failed else "")


def table(findings: Findings, tablefmt: str = "simple") -> str:
    """Format the table for the terminal, or with `tablefmt` "github" for table.md."""
    headers, rows = cells(findings, "\n" if tablefmt == "simple" else " ")
    if tablefmt == "github":
        headers, *rows = [[_markdown_cell(cell) for cell in row] for row in (headers, *rows)]
    return tabulate(rows, headers=headers, tablefmt=tablefmt, disable_numparse=True)


def _markdown_cell(text: str) -> str:
    """Return `text` as one cell of a Markdown table: a line break or a bar would end it."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


class Leaks:
    """The verdict on each arm whose companions were swapped: does its head read them?

    It does where swapping them raises the loss by more than nothing, and than resampling RoIs of
    the same images does, by the 95% intervals over images. Of several runs of an arm, most decide.

    Attributes:
        found: arm -> whether it leaks; None where it was not probed.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._runs = {
            arm: [
                leak
                for report in findings.of(arm, "companion_swap")
                if (leak := leaks(report)) is not None
            ]
            for arm in findings.arms
        }
        self.found = {arm: _most(runs) if runs else None for arm, runs in self._runs.items()}

    def sentence(self, arm: str) -> str:
        """Say whether an arm leaks, how much, and which arms repair it."""
        runs, findings = self._runs[arm], self._findings
        if not runs:
            return "not probed"
        swap = findings.estimate(arm, "swap")
        assert swap is not None
        size = f"{swap.mean:.3f} nats"
        if swap.has_interval:
            size += f" [{swap.low:.3f}, {swap.high:.3f}]"
        leaking = bool(self.found[arm])
        agree = sum(run == leaking for run in runs)
        share = f" in {agree} of {len(runs)} runs" if agree < len(runs) else ""
        if not leaking:
            return f"no leak found{share}: {size}"
        # What takes AP away is no repair.
        own = findings.estimate(arm, "box AP")
        cures = [
            other
            for other, leaks in self.found.items()
            if leaks is False and not _below(findings.estimate(other, "box AP"), own)
        ]
        cure = f"; repaired by {', '.join(cures)}" if cures else ""
        return f"leaks{share}: {size}{cure}"


def leaks(report: Mapping[str, Any]) -> bool | None:
    """Return whether one run leaks; None where nothing could be swapped."""
    swap, null = (report["classification"].get(key) for key in ("change", "null"))
    if not swap or swap["mean"] is None:
        return None
    known = null and null["mean"] is not None
    return swap["low"] > (max(0.0, null["high"]) if known else 0.0)


def _most(runs: Sequence[bool]) -> bool:
    return 2 * sum(runs) > len(runs)


def _below(one: Estimate | None, other: Estimate | None) -> bool:
    """Compare by the intervals. With one seed there is none: a difference counts above 5%."""
    if one is None or other is None:
        return False
    if one.has_interval and other.has_interval:
        return one.high < other.low
    return one.mean < 0.95 * other.mean


def claims(findings: Findings) -> list[tuple[str, str, str]]:
    """Return (claim, answer, numbers and explanation) for each of the study's claims."""
    lines = []
    for claim in findings.study.get("verdicts") or ():
        higher, lower = (
            findings.values(side["arm"], side["column"]) if side["arm"] in findings.arms else {}
            for side in (claim["higher"], claim["lower"])
        )
        gap = difference(higher, lower)
        if gap is None:
            lines.append((claim["claim"], "not measured", ""))
            continue
        column = findings.columns[claim["higher"]["column"]][1]
        unit = column.unit.replace("%", "points")
        why = "" if gap.low > 0 or len(gap.values) == 1 else claim["otherwise"]
        lines.append(
            (
                claim["claim"],
                _answer(gap),
                f"({gap.cell(column.digits, '+')} {unit}). {why}".rstrip(),
            )
        )
    return lines


def _answer(gap: Estimate) -> str:
    if gap.low > 0:
        return "seen"
    if gap.high < 0:
        return "the opposite was seen"
    return "not decided by these seeds" if len(gap.values) > 1 else "one seed decides nothing"


def verdicts(findings: Findings) -> str:
    """Format the verdicts for the terminal; "" where the study asks for none."""
    text = []
    found = Leaks(findings)
    if any(leak is not None for leak in found.found.values()):
        rows = [[arm, found.sentence(arm)] for arm in findings.arms]
        question = (
            "Does a head read a RoI's companions? The change of its loss as they are swapped:"
        )
        text.append(f"{question}\n{tabulate(rows, tablefmt='plain')}")
    text += [f"{claim}: {answer} {numbers}" for claim, answer, numbers in claims(findings)]
    return "\n".join(text)
