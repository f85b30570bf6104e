"""Numbers, intervals and verdicts from results whose answer is known."""

from bn_detect.study.document import write_document
from bn_detect.study.report import write_report
from bn_detect.study.results import Findings
from bn_detect.study.summary import Leaks, cells, claims, table, terminal_tables, verdicts

from .made_up import finished, run, study

NUMBERS = "(not measured: the number of foreground RoIs)"


def _runs(arm: str, swaps: list[float], ap: float, **more) -> dict:
    return {"runs": [run(arm, i, swap=s, ap=ap, **more) for i, s in enumerate(swaps)]}


def test_verdicts():
    other_data = {"options": {"DATASETS.TRAIN": ["b_train"]}}
    arms = {
        "one image": _runs("one image", [0.6, 0.5, 0.55], 28.0),
        "two images": _runs("two images", [0.3, -0.1, 0.0], 41.0),
        "cast": _runs("cast", [0.0, 0.0], 41.0, image=0.3),
        "shuffled": _runs("shuffled", [0.005, -0.005], 42.0),
        "worse": _runs("worse", [0.0], 20.0),
        "surely worse": _runs("surely worse", [0.0, 0.0, 0.0], 27.5),
        "other data": _runs("other data", [0.0], 42.0) | other_data,
        "empty": {},
    }
    found = Leaks(Findings(study(arms)))
    sentences = {arm: found.sentence(arm) for arm in arms}
    kinds = ["leaks", "clean", "image", *["clean"] * 4, "unknown"]
    assert [found.kind(arm) for arm in arms] == kinds
    assert sentences["one image"].startswith(f"reads labels {NUMBERS}: label leakage +0.550 nats [")
    assert "(240 of 240 RoIs, 40 images, 3 seeds; detectable: 0.0" in sentences["one image"]
    assert f"; heads by themselves: 3 x reads labels {NUMBERS}; " in sentences["one image"]
    assert f"1 x reads labels {NUMBERS}" in sentences["two images"]
    assert "by themselves" not in sentences["worse"]  # one head
    # Neither by what takes AP away nor by what saw other data; "two images" may leak as much.
    assert sentences["one image"].endswith("; repaired by cast, shuffled")
    # One seed of three leaks: the images are sure of it, but other seeds may not.
    (labels, _, _) = found.answers["two images"]
    assert labels.over_images.low > 0 > labels.over_seeds.low and not labels.read
    assert labels.detectable > 0.3
    assert sentences["cast"].startswith(f"reads the image's statistics {NUMBERS}: ")
    assert "repaired" not in sentences["cast"]
    assert sentences["worse"].startswith(
        f"reads neither labels nor the image's statistics {NUMBERS}: "
    )
    assert "over seeds" not in sentences["worse"] and "40 images, 1 seed; " in sentences["worse"]
    assert sentences["empty"] == "not probed"
    assert "14 one-sided tests" in found.note and "Holm" in found.note


def test_what_is_seen_before_correction_alone_is_neither_affirmed_nor_denied(tmp_path):
    arms = {
        "weak": _runs("weak", [0.3, 0.15, 0.25], 28.0),
        "nothing": _runs("nothing", [0.0, 0.01, -0.01], 28.0),
    }
    arms |= {str(number): _runs(str(number), [0.0], 40.0) for number in range(6)}
    found = Leaks(Findings(study(arms)))
    assert 0.025 / 14 < found.answers["weak"][0].p < 0.025
    assert [found.kind(arm) for arm in ("weak", "nothing")] == ["open", "clean"]
    assert found.sentence("weak").startswith(f"reads labels, but not after correction {NUMBERS}: ")
    report = write_report(study(arms), tmp_path).read_text()
    assert "A leak was seen, but not after correction, in weak." in report


def test_a_leak_that_other_arms_may_hide_is_no_comparison_of_arms(tmp_path):
    """The foreground swap, which one arm alone had enough RoIs for, finds something there."""
    arms = {name: _runs(name, [0.0], 40.0) for name in ("one image", "shuffled", "SyncBN")}
    swap = arms["shuffled"]["runs"][0]["measures"]["companion_swap"]
    swap["per_roi"]["foreground_classification"] = [0.3] * 80
    findings = Findings(study(arms))
    assert [Leaks(findings).kind(arm) for arm in arms] == ["clean", "leaks", "clean"]
    (sentence,) = Leaks(findings).gaps()
    assert "reads in shuffled" in sentence and "measured in one image; SyncBN" in sentence
    assert sentence in verdicts(findings)
    headline = f"No leak was found in one image; SyncBN. {sentence}"
    assert headline in write_report(study(arms), tmp_path).read_text()
    write_document(tmp_path / "both.md", "Both", {tmp_path: study(arms)})
    assert sentence in (tmp_path / "both.md").read_text()
    swap["per_roi"]["foreground_classification"] = [0.0] * 80
    assert Leaks(Findings(study(arms))).gaps() == []


def test_table_has_what_was_measured():
    arms = {
        "a": {**_runs("a", [0.1, 0.3], 30.0), "reference": {"box AP": 30.7}},
        "b": {"failed": [{"seed": 0, "error": "no", "log": "train.log"}]},
        "c": {},
    }
    findings = Findings(study(arms))
    headers, rows = cells(findings)
    assert headers[:3] == ["arm", "seeds", "box AP (%)"] and "mask AP (%)" not in headers
    by_header = [dict(zip(headers, row, strict=True)) for row in rows]
    assert by_header[0]["box AP (%)"] == "30.0 ± 0.0 [30.0, 30.0]"
    assert by_header[0]["swap (nats)"].startswith("0.200 ± 0.141 [")
    assert by_header[0]["classes in statistics (bits)"].startswith("0.400 ")  # the layer with most
    assert by_header[0]["box AP, reference"] == "30.7"
    assert [row["seeds"] for row in by_header] == ["2", "0 (1 failed)", "not run"]
    assert "30.0 ± 0.0 [30.0, 30.0]" in table(findings)
    whole = terminal_tables(findings, 1000)
    assert "\n\n" not in whole and "30.0 ± 0.0" in whole
    divided = terminal_tables(findings, 60)
    assert max(map(len, divided.splitlines())) <= 60
    parts = divided.split("\n\n")
    assert len(parts) > 2 and all(part.startswith("arm ") for part in parts)
    assert {word for word in whole.split() if word.strip("-")} <= set(divided.split())


def test_an_arm_under_minibatch_statistics_shows_that_ap():
    arms = {name: _runs(name, [0.1], 30.0) for name in "ab"}
    arms["b"]["runs"][0]["measures"]["evaluation"]["test_stats"] = "minibatch"
    findings = Findings(study(arms))
    assert [findings.estimate(arm, "box AP").mean for arm in arms] == [30.0, 35.0]


def test_an_interval_of_nothing_counts_as_not_measured():
    found = run("a", 1, swap=0.5, ap=30.0)
    nothing = {"mean": None, "low": None, "high": None}
    found["measures"]["companion_swap"]["classification"]["null"] = nothing
    found["measures"]["cross_roi_jacobian"]["same_image"] = nothing
    found["measures"]["evaluation"]["population"]["shapes_val"]["bbox"]["AP"] = None
    findings = Findings(study({"a": {"runs": [found]}}))
    assert Leaks(findings).kind("a") == "leaks"
    assert not {"null", "gradient", "box AP"} & {column.key for column in findings.shown}


def test_a_name_cannot_break_the_markdown_table():
    (_, _, row) = table(Findings(study({"a\n| b <i>": {}}))).splitlines()
    assert row.count("|") - row.count("\\|") == 3 and "<i>" not in row


def test_columns_are_those_that_the_study_names():
    arms = {"a": _runs("a", [0.1], 30.0)}
    assert [c.key for c in Findings(study(arms, columns=["swap", "box AP"])).shown] == [
        "swap",
        "box AP",
    ]


def _errors(name: str, errors: list[float]) -> dict:
    measure = "classification_error"
    return {
        "runs": [finished(name, i, {measure: {"val_precise": e}}) for i, e in enumerate(errors, 1)]
    }


def _claim(higher: str, lower: str) -> dict:
    sides = {
        k: {"arm": a, "column": "val_precise"} for k, a in (("higher", higher), ("lower", lower))
    }
    return {"claim": f"{higher} above {lower}", **sides, "otherwise": "Perhaps."}


def test_claims_are_paired_by_seed():
    arms = {
        "small": _errors("small", [10.0, 20.0, 30.0]),
        "large": _errors("large", [9.0, 19.1, 28.9]),
        "noisy": _errors("noisy", [9.0, 25.0, 28.0]),
        "one": _errors("one", [3.0]),
        "none": {},
    }
    pairs = [("small", "large"), ("large", "small"), ("small", "noisy"), ("small", "one")]
    asked = [_claim(*pair) for pair in (*pairs, ("small", "none"))]
    findings = Findings(study(arms, verdicts=asked))
    answers = [(answer, numbers) for _, answer, numbers in claims(findings)]
    assert [answer for answer, _ in answers] == [
        "seen",
        "the opposite was seen",
        "not decided by these seeds",
        "one seed decides nothing",
        "not measured",
    ]
    assert answers[0][1] == "(+1.0 [+0.8, +1.2] points)."
    assert answers[1][1].endswith("Perhaps.") and not answers[3][1].endswith("Perhaps.")
    assert "small above large: seen (+1.0" in verdicts(findings)
