"""A study of a classifier end to end, tiny: hooks, a checkpoint that another arm goes on from."""

import json

import pytest
import yaml

from bn_detect.commands.study import main
from tests.helpers.train_net import REPOSITORY

OPTIONS = {
    "SOLVER.MAX_ITER": 4,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "MODEL.ROI_BN.VIRTUAL_WORKERS": 2,
    "DATASETS.TRAIN": ["digits_train@32"],
    "DATASETS.TEST": ["digits_val@32"],
    "TEST.PRECISE_BN.NUM_ITER": 2,
}
MEASURES = ["training_error", "classification_error", "same_class_error", "moving_averages"]
DOMAINS = {"domain_shift": {"corruptions": ["contrast"], "severities": [3, 5]}}
LATE = {
    "name": "late",
    "starts_from": {"arm": "plain", "iteration": 3},
    "options": {"MODEL.ROI_BN.FREEZE_ITER": 3},
    "measure": {"classification_error": {"errors": ["val_population"]}},
}


@pytest.fixture(scope="module")
def output(datasets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    study = {
        "name": "digits",
        "base": str(REPOSITORY / "configs/digits/Base-digits.yaml"),
        "options": OPTIONS,
        "datasets": {"digits": None},
        "arms": [{"name": "plain"}, LATE],
        "measure": [*MEASURES, DOMAINS],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    words = [str(folder / "study.yaml"), "--output", str(folder / "out"), "--jobs", "1"]
    assert main([*words, "--document", str(folder / "doc.md")]) == 0
    return folder / "out"


def measures(output, arm: str) -> dict:
    (run,) = json.loads((output / "results.json").read_text())["arms"][arm]["runs"]
    assert run["failed"] == {}
    return run["measures"]


def test_everything_is_measured(output):
    found = measures(output, "plain")
    assert set(found) == {"training_loss", *MEASURES, *DOMAINS}
    assert 0 <= found["training_error"]["training"] <= 100
    assert len(found["classification_error"]) == 6
    assert [row[0] for row in found["moving_averages"]["means"]] == [1, 2, 3, 4]
    assert set(found["moving_averages"]["samples"]) == {"half", "end"}
    assert "contrast_5 under all images of contrast_5" in found["domain_shift"]


def test_training_goes_on_from_the_checkpoint_of_another_arm(output):
    found = measures(output, "late")
    assert set(found["classification_error"]) == {"val_population"}
    log = (output / "runs/late/seed_1/train.log").read_text()
    assert "Starting training from iteration 3\n" in log
    assert "are frozen from here on" in log


def test_the_document_and_the_report(output):
    text = (output.parent / "doc.md").read_text()
    for part in ("### Samples for PreciseBN", "severity 5", "| plain |", "| late "):
        assert part in text
    names = {path.stem for path in (output / "figures").iterdir()}
    assert {"averages", "means", "domain_shift", "errors"} <= names
    assert "<h3>" in (output / "report.html").read_text()
