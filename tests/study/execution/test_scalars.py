"""Measurements in TensorBoard."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bn_detect.study.execution.scalars import write_scalars

from .. import made_up


def test_single_numbers_are_written_under_their_path(tmp_path):
    run = made_up.run("arm", 1, swap=0.5, ap=30.0, flips=[{"label": 1, "box": [0, 0, 1, 1]}])
    run["iterations"] = 700
    run["measures"]["evaluation"]["population"]["shapes_val"]["bbox"]["APl"] = None
    write_scalars(run, tmp_path)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    tags = set(found.Tags()["scalars"])
    (event,) = found.Scalars("evaluation/population/shapes_val/bbox/AP")
    assert (event.step, event.value) == (700, 30.0)
    swap = "companion_swap/classification/change"
    assert {f"{swap}/mean", f"{swap}/low", f"{swap}/high"} <= tags
    bits = found.Scalars("statistics_probe/layers/box_head.conv2.norm/classes/bits")
    assert bits[0].value == 1.0
    assert found.Scalars("decomposition/rows/val/population/loss")[0].value == pytest.approx(1.0)
    assert not any("flips" in tag or "APl" in tag for tag in tags)
