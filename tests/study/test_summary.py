"""Numbers, intervals and verdicts from results whose answer is known."""

import math

import pytest
from bn_detect.study.estimates import over_seeds, with_interval

from bn_detect.study.summary import cells, summarize, table

from .made_up import interval, run, study


def test_interval_over_seeds_is_students():
    estimate = over_seeds([40.0, 42.0, 44.0])
    # t quantile of 2 degrees of freedom, 4.3027; standard error 2 / sqrt(3).
    assert estimate.mean == 42 and estimate.spread == pytest.approx(2)
    assert estimate.high - 42 == pytest.approx(4.3027 * 2 / math.sqrt(3), rel=1e-4)
    assert 42 - estimate.low == pytest.approx(estimate.high - 42)
    assert estimate.text(1) == "42.0 ± 2.0 [37.0, 47.0]"


def test_one_seed_has_the_interval_of_its_probe_or_none():
    assert over_seeds([]) is None and with_interval([]) is None
    assert over_seeds([3.14]).text(1) == "3.1"
    assert with_interval([interval(0.5)]).text(2) == "0.50 [0.49, 0.51]"
    assert with_interval([interval(0.4), interval(0.6)]) == over_seeds([0.4, 0.6])


def _runs(arm: str, swaps: list[float], ap: float, **more) -> dict:
    return {"runs": [run(arm, i, swap=s, ap=ap, **more) for i, s in enumerate(swaps)]}


def test_verdicts():
    arms = {
        "one image": _runs("one image", [0.6, 0.5], 28.0),
        "two images": _runs("two images", [0.2, 0.1, 0.0], 41.0),
        "resampled": _runs("resampled", [0.05], 41.0, null=0.05),
        "shuffled": _runs("shuffled", [0.005, -0.005], 42.0),
        "worse": _runs("worse", [0.0], 20.0),
        "surely worse": _runs("surely worse", [0.0, 0.0], 27.0),
        "empty": {},
    }
    found = summarize(study(arms))
    verdicts = {arm.name: arm.verdict for arm in found}
    assert verdicts["one image"].startswith("leaks: 0.550 nats [")
    assert verdicts["one image"].endswith("; repaired by resampled, shuffled")  # not by "worse"
    assert verdicts["two images"].startswith("leaks in 2 of 3 runs: 0.100 nats [")
    # An AP within the interval, or of one seed and near, is as good.
    assert verdicts["two images"].endswith("; repaired by resampled, shuffled")
    assert verdicts["resampled"] == "no leak found: 0.050 nats [0.040, 0.060]"
    assert verdicts["shuffled"].startswith("no leak found: 0.000 nats [")
    assert verdicts["empty"] == "not probed"
    assert [arm.leaks for arm in found] == [True, True, False, False, False, False, None]


def test_table_has_what_was_measured():
    arms = {
        "a": {**_runs("a", [0.1, 0.3], 30.0), "reference": {"box AP": 30.7}},
        "b": {"failed": [{"seed": 0, "error": "no", "log": "train.log"}]},
        "c": {},
    }
    summaries = summarize(study(arms))
    headers, rows = cells(summaries)
    assert headers[:3] == ["arm", "seeds", "box AP"] and "mask AP" not in headers
    by_header = [dict(zip(headers, row, strict=True)) for row in rows]
    assert by_header[0]["box AP"] == "30.0 ± 0.0 [30.0, 30.0]"
    assert by_header[0]["swap (nats)"].startswith("0.200 ± 0.141 [")
    assert by_header[0]["bits in statistics"].startswith("0.400 ")  # the layer with most
    assert by_header[0]["box AP, reference"] == "30.7"
    assert [row["seeds"] for row in by_header] == ["2", "0 (1 failed)", "not run"]
    for tablefmt in ("simple", "github"):
        assert "30.0 ± 0.0" in table(summaries, tablefmt)


def test_an_arm_under_minibatch_statistics_shows_that_ap():
    minibatch = {"options": {"MODEL.ROI_BN.TEST_STATS": "minibatch"}}
    arms = {"a": _runs("a", [0.1], 30.0), "b": {**_runs("b", [0.1], 30.0), **minibatch}}
    arms["c"] = _runs("c", [0.1], 30.0)  # set for the whole study, or by its base
    arms["c"]["runs"][0]["test_stats"] = "minibatch"
    aps = [arm.found["box AP"].mean for arm in summarize(study(arms))]
    assert aps == [30.0, 35.0, 35.0]


def test_an_interval_of_nothing_counts_as_not_measured():
    found = run("a", 1, swap=0.5, ap=30.0)
    nothing = {"mean": None, "low": None, "high": None}
    found["probes"]["companion_swap"]["classification"]["null"] = nothing
    found["probes"]["cross_roi_jacobian"]["same_image"] = nothing
    found["evaluation"]["population"]["shapes_val"]["bbox"]["AP"] = None
    (arm,) = summarize(study({"a": {"runs": [found]}}))
    assert arm.leaks and not {"null", "gradient", "box AP"} & arm.found.keys()
