"""The table of a study, a row for each arm, and its verdicts: on leaks, and on its claims."""

import html
import math
import shutil
from collections import Counter
from collections.abc import Mapping

from tabulate import tabulate

from ..probes.intervals import LEVEL, holm
from ..probes.swaps.verdicts import QUESTIONS, Answer, answers, answers_of, predicate
from ..reporting.estimates import Estimate, difference, over_seeds, two_sided_p
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


def table(findings: Findings) -> str:
    """Format the table for table.md."""
    headers, rows = cells(findings)
    headers, *rows = [[_markdown_cell(cell) for cell in row] for row in (headers, *rows)]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def terminal_tables(findings: Findings, width: int | None = None) -> str:
    """Format the table in parts that fit the terminal, as far as single columns do.

    Args:
        width: in characters; None: that of the terminal, or 100 where there is none.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    headers, rows = cells(findings, "\n")
    parts: list[str] = []
    shown = [0]  # the arms, in each part

    def part(columns: list[int]) -> str:
        chosen = [[row[i] for i in columns] for row in (headers, *rows)]
        return tabulate(chosen[1:], headers=chosen[0], disable_numparse=True)

    for column in range(1, len(headers)):
        wider = part([*shown, column])
        if len(shown) > 1 and max(map(len, wider.splitlines())) > width:
            parts.append(part(shown))
            shown = [0]
        shown.append(column)
    return "\n\n".join([*parts, part(shown)])


def _markdown_cell(text: str) -> str:
    """Return `text` as one cell of a Markdown table: a line break or a bar would end it."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


class Leaks:
    """The verdict on each arm whose companions were swapped: what do its heads read?

    Attributes:
        answers: arm -> its answers to `QUESTIONS`; arms that were not probed are left out.
        note: what kind of tests the verdicts are, as a sentence.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        judged = answers(findings.by_arm("companion_swap"))
        self.answers = {arm: all_ for arm, all_ in judged.items() if any(a.seeds for a in all_)}
        tests = sum(not math.isnan(a.p) for each in self.answers.values() for a in each)
        self.note = (
            "Label leakage, image dependence and dependence on the number of foreground RoIs are "
            "told apart by different swaps of the same RoIs (docs/probes.md). The verdicts rest on "
            f"{tests} one-sided tests, as one family at 2.5% by Holm's correction; with several "
            "seeds, a test counts their variance and that of the images. Intervals are 95%, over "
            'seeds by Student\'s t, over images by the bootstrap. "Detectable" is the smallest '
            "difference that would have been found in 4 of 5 such studies."
        )

    def verdict(self, arm: str) -> str:
        """Return what the heads of an arm read, as a predicate."""
        found = self.answers.get(arm)
        if found is None:
            return "not probed"
        return predicate(found)

    def kind(self, arm: str) -> str:
        """Return what is to be said of an arm.

        "leaks", "open" (it leaks, but not after correction), "image" (it depends on the image
        alone, after correction or before it), "clean" or "unknown".
        """
        found = self.answers.get(arm)
        if found is None or math.isnan(found[0].p):
            return "unknown"
        if any(a.read and a.question.cheating for a in found):
            return "leaks"
        if any(a.open and a.question.cheating for a in found):
            return "open"
        return "image" if any(a.read or a.open for a in found) else "clean"

    def sentence(self, arm: str) -> str:
        """Return the verdict on an arm with its numbers, and the arms that repair it."""
        found = [a for a in self.answers.get(arm, ()) if not math.isnan(a.p)]
        if not found:
            return self.verdict(arm)
        parts = [_numbers(answer) for answer in found]
        reports = self._findings.by_arm("companion_swap")[arm]
        if len(reports) > 1:  # a leak that some heads alone have learned is lost in their mean
            alone = Counter(predicate(answers_of(report)) for report in reports)
            each = ", ".join(f"{number} x {text}" for text, number in alone.most_common())
            parts.append(f"heads by themselves: {each}")
        if filled := sum(report.get("filled", 0) for report in reports):
            of = sum(report["rois"] for report in reports)
            parts.append(f"plain took companions of more images for {filled} of {of} RoIs")
        if cures := self._cures(arm):
            parts.append(f"repaired by {', '.join(cures)}")
        return f"{self.verdict(arm)}: {'; '.join(parts)}"

    def gaps(self) -> list[str]:
        """Return a sentence for each way to cheat that some arms show and others hide.

        An arm hides it where too few RoIs could be swapped to measure it.
        """
        sentences = []
        for number, question in enumerate(QUESTIONS):
            found = {arm: of_arm[number] for arm, of_arm in self.answers.items()}
            readers = [arm for arm, answer in found.items() if answer.read]
            hidden = [arm for arm, answer in found.items() if math.isnan(answer.p)]
            if question.cheating and readers and hidden:
                sentences.append(
                    f"What the head reads in {'; '.join(readers)}, {question.thing}, could not be "
                    f"measured in {'; '.join(hidden)}."
                )
        return sentences

    def _cures(self, arm: str) -> list[str]:
        """Return the arms of the same data that leak less than this one and have no less AP."""
        findings = self._findings
        leaks = [a for a in self.answers[arm] if a.read and a.question.cheating]
        if not leaks:
            return []
        return [
            other
            for other, theirs in self.answers.items()
            if self.kind(other) in ("clean", "image")
            and all(
                leak.exceeds(there)
                for leak in leaks
                for there in theirs
                if there.question == leak.question
            )
            and findings.data_of(other) == findings.data_of(arm)
            and _kept(findings.values(other, "box AP"), findings.values(arm, "box AP"))
        ]


def _numbers(answer: Answer) -> str:
    intervals = [("images", answer.over_images)]
    if answer.over_seeds:
        intervals.insert(0, ("seeds", answer.over_seeds))
    spelled = ", ".join(f"[{i.low:.3f}, {i.high:.3f}] over {unit}" for unit, i in intervals)
    return (
        f"{answer.question.name} {answer.mean:+.3f} nats {spelled} "
        f"({answer.rois} of {answer.asked} RoIs, {answer.images} images, "
        f"{answer.seeds} {'seed' if answer.seeds == 1 else 'seeds'}; "
        f"detectable: {answer.detectable:.3f})"
    )


def _kept(after: Mapping[int, float], before: Mapping[int, float]) -> bool:
    """Return whether AP is known not to have fallen: neither for certain, nor by above 5%."""
    change, own = difference(after, before), over_seeds(list(before.values()))
    if change is None or own is None:
        return False
    surely = change.has_interval and change.high < 0
    return not surely and change.mean >= -0.05 * abs(own.mean)


def claims(findings: Findings) -> list[tuple[str, str, str]]:
    """Return (claim, answer, numbers and explanation) for each of the study's claims."""
    asked = findings.study.get("verdicts") or ()
    gaps = []
    for claim in asked:
        higher, lower = (
            findings.values(side["arm"], side["column"]) if side["arm"] in findings.arms else {}
            for side in (claim["higher"], claim["lower"])
        )
        gaps.append(difference(higher, lower))
    decided = holm([math.nan if gap is None else two_sided_p(gap) for gap in gaps], 2 * LEVEL)
    lines = []
    for claim, gap, sure in zip(asked, gaps, decided, strict=True):
        if gap is None:
            lines.append((claim["claim"], "not measured", ""))
            continue
        column = findings.columns[claim["higher"]["column"]][1]
        unit = column.unit.replace("%", "points")
        why = "" if gap.low > 0 or len(gap.values) == 1 else claim["otherwise"]
        numbers = f"({gap.cell(column.digits, '+')} {unit}). {why}".rstrip()
        lines.append((claim["claim"], _answer(gap, sure), numbers))
    return lines


def _answer(gap: Estimate, sure: bool) -> str:
    """Put a claim's answer into words; `sure`: it holds by Holm's correction over the claims."""
    if len(gap.values) == 1:
        return "one seed decides nothing"
    if sure:
        return "seen" if gap.mean > 0 else "the opposite was seen"
    if gap.low > 0 or gap.high < 0:
        return f"{'seen' if gap.low > 0 else 'the opposite was seen'}, but not after correction"
    return "not decided by these seeds"


def verdicts(findings: Findings) -> str:
    """Format the verdicts for the terminal; "" where the study asks for none."""
    text = []
    found = Leaks(findings)
    if found.answers:
        text += [f"{arm}: {found.sentence(arm)}" for arm in findings.arms]
        text += [*found.gaps(), found.note]
    text += [f"{claim}: {answer} {numbers}" for claim, answer, numbers in claims(findings)]
    return "\n".join(text)
