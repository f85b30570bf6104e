"""The measure "known_answer": is the verdict of the companion swap right, where its data tell?

It judges each run by itself, for data that were made so that a head can learn to read one thing.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from ...probes.swaps.verdicts import QUESTIONS, answers_of, phrase
from ...reporting.columns import Column, Result
from ...reporting.drawing import Results
from .measure import Measure, Options
from .subject import Subject

THINGS = [question.thing for question in QUESTIONS]


def known_answer(subject: Subject, options: Options, kept: Result) -> Iterator[dict[str, Any]]:
    """Yield "expected" and "read": what the head can read, and what the verdict says it reads."""
    report = subject.results.get("companion_swap")
    if not report:
        raise ValueError("there is no swap to judge: name the measure companion_swap too")
    yield {
        "expected": [thing for thing in THINGS if thing in options["reads"]],
        "read": [answer.question.thing for answer in answers_of(report) if answer.read],
    }


def _check(cfg: CfgNode, model: nn.Module, options: Options) -> None:
    wrong = [thing for thing in options["reads"] if thing not in THINGS]
    if wrong:
        raise ValueError(f"reads is {wrong[0]!r}; it may hold {', '.join(THINGS)}")


def _right(result: Result) -> float | None:
    return float(result["read"] == result["expected"]) if "read" in result else None


def _tables(results: Results) -> str:
    """Right and wrong verdicts by arm, then by what is read."""
    rows = []
    for arm, runs in results.items():
        said = Counter(phrase(run["read"]) for run in runs)
        expected = phrase(runs[0]["expected"]).removeprefix("reads ")
        verdicts = "; ".join(f"{n} x {text}" for text, n in said.most_common())
        right = sum(run["read"] == run["expected"] for run in runs)
        rows.append([arm, expected, verdicts, right, len(runs) - right])
    every = [run for runs in results.values() for run in runs]
    shares = []
    for thing in THINGS:
        there = [thing in run["read"] for run in every if thing in run["expected"]]
        absent = [thing in run["read"] for run in every if thing not in run["expected"]]
        shares.append([thing, *(f"{sum(each)} of {len(each)}" for each in (there, absent))])
    headers = ["arm", "a head can read", "verdicts", "right", "wrong"]
    second = ["read", "said where it can be read", "said where it cannot"]
    return "\n\n".join(
        [
            "### Right and wrong verdicts",
            str(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)),
            str(tabulate(shares, headers=second, tablefmt="github", disable_numparse=True)),
        ]
    )


MEASURE = Measure(
    known_answer,
    columns=(
        Column(
            "right",
            "right verdicts (share)",
            2,
            _right,
            "Share of runs whose verdict names exactly what the data let a head read.",
        ),
    ),
    tables=_tables,
    options={"reads": []},
    check=_check,
)
