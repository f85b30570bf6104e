"""The plan, what is kept of it, and what follows from the numbers."""

import json

import pytest

from bn_detect.domain_shift.cells import Cell, Results, fingerprint, plan
from bn_detect.domain_shift.picture import draw
from bn_detect.domain_shift.summary import score, summarize, tables

CORRUPTIONS = ["fog", "snow"]


def measured(metric=lambda cell: 50.0, task="bbox", name="AP") -> dict:
    cells = plan(CORRUPTIONS, [10, 100])
    return {c.place: Cell(c.data, c.statistics, c.images, {task: {name: metric(c)}}) for c in cells}


def test_plan():
    cells = [cell.place for cell in plan(["fog"], [100, 10, 10])]
    assert cells == [
        ("clean", "checkpoint", 0),
        ("fog", "checkpoint", 0),
        ("clean", "clean", 100),
        ("fog", "clean", 100),
        ("clean", "clean", 10),
        ("clean", "fog", 100),
        ("fog", "fog", 100),
        ("fog", "fog", 10),
    ]
    assert len(set(cells)) == len(cells)


def test_results_are_kept(tmp_path):
    path, settings = tmp_path / "r.json", {"weights": "a", "severity": 3}
    first = Results(path, settings)
    cell = Cell("fog", "checkpoint", 0, {"bbox": {"AP": 1.5, "APl": float("nan")}})
    first.add(cell)
    again = Results(path, settings)
    assert again.cells[cell.place].metrics == {"bbox": {"AP": 1.5, "APl": None}}
    with pytest.raises(ValueError, match="measured with another severity, weights; name another"):
        Results(path, {"weights": "b", "severity": 2})
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds no results of this tool"):
        Results(path, settings)


def test_fingerprint():
    assert fingerprint(b"a", b"b") == fingerprint(b"a", b"b")
    assert fingerprint(b"ab") != fingerprint(b"a", b"b") != fingerprint(b"b", b"a")


def ap(cell: Cell) -> float:
    """80 under the checkpoint's statistics on clean images, 20 and 60 less on fog and snow, of
    which own statistics give 10 and 30 back, but none from fewer than 100 images."""
    lost = {"clean": 0, "fog": 20, "snow": 60}[cell.data]
    repaired = cell.statistics == cell.data and cell.images == 100
    return 80.0 - lost + (lost / 2 if repaired else 0)


def test_means_over_corruptions():
    means = summarize(measured(ap), CORRUPTIONS, 100)
    assert means.source == pytest.approx((40 + 80) / 2)
    assert means.target == pytest.approx((30 + 50) / 2)
    assert means.ratio == pytest.approx(100 * (30 / 40 + 50 / 80) / 2)
    assert summarize(measured(ap), CORRUPTIONS, 10).ratio == pytest.approx(100)
    errors = measured(lambda c: 100 - ap(c), "classification", "top1_error")
    assert summarize(errors, CORRUPTIONS, 100) == means


def test_tables():
    text = tables(measured(ap), CORRUPTIONS, [10, 100])
    rows = [[w.strip() for w in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert rows[0] == ["evaluated on", "checkpoint", "clean", "fog", "snow"]
    assert rows[2:5] == [
        ["clean", "80.0", "80.0", "80.0", "80.0"],
        ["fog", "60.0", "60.0", "70.0", "60.0"],
        ["snow", "20.0", "20.0", "20.0", "50.0"],
    ]
    assert rows[5] == ["evaluated on", "checkpoint", "10", "100"]
    assert rows[-1] == ["snow", "20.0", "20.0", "50.0"]
    assert "60.0 under the checkpoint's statistics, 40.0 under each one's own" in text


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_no_detection_is_an_ap_of_0(nothing):
    assert score({"bbox": {"AP": nothing}}) == ("AP", 0.0, True)


def test_a_task_that_is_not_known():
    with pytest.raises(ValueError, match="no metric to compare among depth"):
        tables(measured(task="depth"), CORRUPTIONS, [10, 100])


@pytest.mark.parametrize("task", [("bbox", "AP"), ("classification", "top1_error")])
def test_picture(tmp_path, task):
    path = tmp_path / "p.png"
    draw(measured(ap, *task), CORRUPTIONS, [10, 100], path)
    assert path.read_bytes().startswith(b"\x89PNG")
