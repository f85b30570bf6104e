"""Verdicts on made-up swaps, judged against what a head can read."""

from types import SimpleNamespace

import pytest

from bn_detect.study.measures.known_answer import MEASURE
from bn_detect.study.results import Findings
from bn_detect.study.summary import cells

from ..made_up import finished, readings, study

LABELS, IMAGE = "labels", "the image's statistics"


def judged(labels: float, image: float, reads: list[str]) -> dict:
    swap = {"per_roi": readings(labels, image)}
    subject = SimpleNamespace(results={"companion_swap": swap})
    (result,) = MEASURE.take(subject, {"reads": reads}, {})
    return result


def test_right_and_wrong():
    assert judged(0.3, 0.0, [LABELS]) == {"expected": [LABELS], "read": [LABELS]}
    both = judged(0.3, 0.3, [IMAGE, LABELS])
    assert both == {"expected": [LABELS, IMAGE], "read": [LABELS, IMAGE]}
    assert judged(0.0, 0.0, [IMAGE]) == {"expected": [IMAGE], "read": []}
    with pytest.raises(ValueError, match="companion_swap"):
        list(MEASURE.take(SimpleNamespace(results={}), {"reads": []}, {}))
    with pytest.raises(ValueError, match="reads is 'light'"):
        MEASURE.check(None, None, {"reads": [LABELS, "light"]})


def test_the_table_counts_them():
    answers = {
        "labels": [judged(0.3, 0.0, [LABELS])] * 2 + [judged(0.3, 0.3, [LABELS])],
        "nothing": [judged(0.0, 0.0, [])] * 2,
    }
    first, second = MEASURE.tables(answers).split("\n\n")[1:]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in first.splitlines()[2:]]
    assert rows == [
        ["labels", LABELS, f"2 x reads labels; 1 x reads labels and {IMAGE}", "2", "1"],
        ["nothing", f"neither {LABELS} nor {IMAGE}", f"2 x reads neither {LABELS} nor {IMAGE}"]
        + ["2", "0"],
    ]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in second.splitlines()[2:]]
    assert rows[:2] == [[LABELS, "3 of 3", "0 of 2"], [IMAGE, "0 of 0", "1 of 5"]]
    arms = {
        arm: {"runs": [finished(arm, i, {"known_answer": run}) for i, run in enumerate(runs)]}
        for arm, runs in answers.items()
    }
    headers, rows = cells(Findings(study(arms)))
    shares = [row[headers.index("right verdicts (share)")] for row in rows]
    assert shares[0].startswith("0.67 ") and shares[1].startswith("1.00 ")
