"""The cells of a domain-shift table: the plan, what is kept of it, what the numbers say."""

from types import SimpleNamespace

import pytest

from bn_detect.study.measures import domain_shift as measuring
from bn_detect.study.measures.domain_shift import MEASURE, domain_shift
from bn_detect.study.measures.domain_table import Cell, Table, plan, score, tables

OPTIONS = {**MEASURE.options, "corruptions": ["fog", "snow"], "num_images": [100, 10, 10]}


def measured(metric=lambda cell: 50.0, task="bbox", name="AP") -> dict:
    cells = {cell.key: {task: {name: metric(cell)}} for cell in plan(OPTIONS)}
    return {"options": OPTIONS, **cells}


def test_plan():
    cells = plan({**OPTIONS, "corruptions": ["fog", "fog"]})
    assert [(c.data, c.statistics, c.images) for c in cells] == [
        ("clean", "checkpoint", "0"),
        ("fog_3", "checkpoint", "0"),
        ("clean", "clean", "100"),
        ("fog_3", "clean", "100"),
        ("clean", "clean", "10"),
        ("clean", "fog_3", "100"),
        ("fog_3", "fog_3", "100"),
        ("fog_3", "fog_3", "10"),
    ]


def test_each_statistics_are_made_once_for_all_severities():
    cells = plan({**OPTIONS, "severities": [3, 5], "num_images": ["all"]})
    passes = [(c.statistics, c.images) for c in cells]
    assert len(set(cells)) == len(cells) == 5 + 2 * 3 * 3 - 1
    starts = [p for i, p in enumerate(passes) if i == 0 or passes[i - 1] != p]
    assert len(starts) == len(set(starts)) == 6


@pytest.fixture
def evaluated(monkeypatch) -> list[str]:
    """The keys of the cells that are evaluated from now on, without a model."""
    entered: list[str] = []
    names: list[str] = []

    class Statistics:
        def __init__(self, cfg, model, name, number) -> None:
            self._name = f"{number} of {name}"

        def __enter__(self):
            entered.append(self._name)

        def __exit__(self, *_):
            entered.pop()

    def evaluate(cfg, model, name, folder) -> dict:
        names.append(f"{name} under {entered[-1] if entered else 'checkpoint'}")
        return {"bbox": {"AP": float(len(names))}}

    monkeypatch.setattr(measuring, "with_statistics_of", Statistics)
    monkeypatch.setattr(measuring, "evaluate_on", evaluate)
    monkeypatch.setattr(measuring, "register", lambda *args: None)
    monkeypatch.setattr(measuring, "register_derived", lambda *args: None)
    return names


def test_what_was_measured_is_not_measured_again(evaluated, tmp_path):
    cfg = SimpleNamespace(DATASETS=SimpleNamespace(TEST=["val"]))
    subject = SimpleNamespace(cfg=cfg, model=None, folder=tmp_path)
    options = {**OPTIONS, "corruptions": ["fog"], "num_images": [6]}
    kept: dict = {}
    parts = domain_shift(subject, options, kept)
    for _ in range(4):
        kept |= next(parts)
    assert evaluated == [
        "val@-6 under checkpoint",
        "val_corrupted_fog_3@-6 under checkpoint",
        "val@-6 under 6 of val",
    ]
    evaluated.clear()
    for part in domain_shift(subject, options, kept):
        kept |= part
    assert evaluated == [
        "val_corrupted_fog_3@-6 under 6 of val",
        "val@-6 under 6 of val_corrupted_fog_3",
        "val_corrupted_fog_3@-6 under 6 of val_corrupted_fog_3",
    ]
    evaluated.clear()
    for part in domain_shift(subject, {**options, "num_images": [3, 6]}, kept):
        kept |= part
    assert evaluated == [
        "val@-6 under 3 of val",
        "val_corrupted_fog_3@-6 under 3 of val_corrupted_fog_3",
    ]
    evaluated.clear()  # more images for the statistics leave fewer to evaluate on
    next(parts := domain_shift(subject, {**options, "num_images": [3, 8]}, kept)), next(parts)
    assert evaluated == ["val@-8 under checkpoint"]


@pytest.mark.parametrize(
    ("images_of", "number", "name"),
    [("train", 6, "val"), ("val", "all", "val"), (None, 6, "val@-6")],
)
def test_only_evaluated_images_are_left_out(evaluated, tmp_path, images_of, number, name):
    cfg = SimpleNamespace(DATASETS=SimpleNamespace(TEST=["val"]))
    subject = SimpleNamespace(cfg=cfg, model=None, folder=tmp_path)
    options = {**OPTIONS, "corruptions": [], "num_images": [number], "images_of": images_of}
    for _ in domain_shift(subject, options, {}):
        pass
    where = None if number == "all" else number
    assert evaluated == [
        f"{name} under checkpoint",
        f"{name} under {where} of {images_of or 'val'}",
    ]


def test_parts_are_kept_where_only_the_size_of_the_table_changes():
    more = {"corruptions": ["fog"], "severities": [1], "num_images": [5]}
    assert MEASURE.keeps(OPTIONS, {**OPTIONS, **more})
    assert not MEASURE.keeps(OPTIONS, {**OPTIONS, "images_of": "other"})


def ap(cell: Cell) -> float:
    """80 under the checkpoint's statistics on clean images, 20 and 60 less on fog and snow, of
    which own statistics give 10 and 30 back, but none from fewer than 100 images."""
    lost = {"clean": 0, "fog_3": 20, "snow_3": 60}[cell.data]
    repaired = cell.statistics == cell.data and cell.images == "100"
    return 80.0 - lost + (lost / 2 if repaired else 0)


def test_means_over_corruptions():
    means = Table([measured(ap)]).means(3)
    ratio = 100 * (30 / 40 + 50 / 80) / 2
    assert "60.0 under the checkpoint's statistics, 40.0 under each one's own" in means
    assert f"ratios: {ratio:.1f}%" in means
    errors = measured(lambda c: 100 - ap(c), "classification", "top1_error")
    assert Table([errors]).means(3) == means


def test_tables():
    text = tables({"arm": [measured(ap)]})
    rows = [[w.strip() for w in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert rows[0] == ["evaluated on", "checkpoint", "clean", "fog_3", "snow_3"]
    assert rows[2:5] == [
        ["clean", "80.0", "80.0", "80.0", "80.0"],
        ["fog_3", "60.0", "60.0", "70.0", "60.0"],
        ["snow_3", "20.0", "20.0", "20.0", "50.0"],
    ]
    assert rows[5] == ["evaluated on", "checkpoint", "10", "100"]
    assert rows[-1] == ["snow_3", "20.0", "20.0", "50.0"]


def test_columns_for_claims_are_the_cells():
    columns = {c.key: c for c in MEASURE.all_columns(OPTIONS)}
    assert columns["fog_3 under 100 images of fog_3"].number(measured(ap)) == 70.0
    assert columns["clean under checkpoint"].number({}) is None


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_no_detection_is_an_ap_of_0(nothing):
    assert score({"bbox": {"AP": nothing}}) == ("AP", 0.0, True)


def test_a_task_that_is_not_known():
    with pytest.raises(ValueError, match="no metric to compare among depth"):
        tables({"arm": [measured(task="depth")]})


@pytest.mark.parametrize("task", [("bbox", "AP"), ("classification", "top1_error")])
@pytest.mark.parametrize("numbers", [[10, 100], ["all"]])
def test_picture(task, numbers):
    options = {**OPTIONS, "num_images": numbers, "severities": [3, 5]}
    cells = {cell.key: {task[0]: {task[1]: 50.0}} for cell in plan(options)}
    figure = MEASURE.figures[0].draw({"arm": [{"options": options, **cells}]})
    assert len(figure.axes) == 4
