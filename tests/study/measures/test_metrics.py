"""Reading the metrics.json of runs that were killed and resumed."""

import json

from bn_detect.study.measures.metrics import (
    latest,
    read_metrics,
    seconds_per_iteration,
    training_curves,
    training_summary,
)


def record(iteration: int, loss: float, **more) -> dict:
    return {"iteration": iteration, "total_loss": loss, "loss_cls": loss, "time": 0.5, **more}


def write(path, lines: list) -> None:
    path.write_text("".join(x if isinstance(x, str) else f"{json.dumps(x)}\n" for x in lines))


def test_a_resumed_run_counts_each_iteration_once(tmp_path):
    path = tmp_path / "metrics.json"
    repeated = record(39, 5.0)
    write(path, [record(19, 9.0), record(39, 7.0), repeated, {"iteration": 40, "bbox/AP": 1.0}])
    assert read_metrics(path) == [record(19, 9.0), repeated]
    assert latest(path) == repeated


def test_a_line_that_is_cut_off_does_not_count(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, [record(19, 9.0), '{"iteration": 39, "total_lo'])
    assert latest(path) == record(19, 9.0)
    write(path, [record(19, 9.0), '{"iteration": 39, "to', record(39, 1.0), record(59, 2.0)])
    assert [r["iteration"] for r in read_metrics(path)] == [19, 59]
    assert latest(path)["iteration"] == 59


def test_before_there_are_any(tmp_path):
    path = tmp_path / "metrics.json"
    assert read_metrics(path) == [] and latest(path) == {}
    assert training_summary([]) == {} and training_curves([]) == {}
    assert seconds_per_iteration([]) is None


def test_the_summary_is_of_the_last_tenth():
    accuracy = "fast_rcnn/fg_cls_accuracy"
    records = [record(i - 1, float(i), **{accuracy: i / 100}) for i in range(10, 101, 10)]
    found = training_summary(records)
    assert found["loss_cls"] == 95.0  # of iterations 90 and 100
    assert found["fg_cls_accuracy"] == 0.95
    assert "time" not in found and accuracy not in found


def test_curves_end_with_the_last_record_and_are_bounded():
    records = [record(i, float(i)) for i in range(1001)]
    curves = training_curves(records)
    assert len(curves["iteration"]) <= 200
    assert curves["iteration"][-1] == 1000 and curves["loss_cls"][-1] == 1000.0
    assert training_curves(records[:3])["iteration"] == [0, 1, 2]
