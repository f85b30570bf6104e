"""Commands with a LazyConfig: a study that trains its arms, a probe, statistics, training."""

import json
import shutil

import pytest
import torch
import yaml

from bn_detect.commands import precise_bn, probe, study, train
from tests.helpers.train_net import REPOSITORY

SMALL = REPOSITORY / "tests/helpers/small_lazy.py"
BATCH = "model.roi_heads.box_head.roi_batch.batch"


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory):
    """The folder of a study whose arms are overrides in LazyConfig's own syntax."""
    folder = tmp_path_factory.mktemp("lazy")
    plan = {
        "name": "lazy",
        "base": str(SMALL),
        "options": {"train.max_iter": 2, "TEST.PRECISE_BN.NUM_ITER": 2},
        "arms": [{"name": name, "options": {BATCH: name}} for name in ("images", "shuffled")],
        "measure": ["evaluation", "companion_swap"],
    }
    (folder / "lazy.yaml").write_text(yaml.safe_dump(plan))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALL_LAZY_OURS", "1")
        words = [str(folder / "lazy.yaml"), "--output", str(folder / "out"), "--jobs", "2"]
        assert study.main(words) == 0
        yield folder


def test_the_arms_are_trained_and_measured(trained):
    arms = json.loads((trained / "out/results.json").read_text())["arms"]
    for name in ("images", "shuffled"):
        (run,) = arms[name]["runs"]
        assert run["iterations"] == 2 and run["measures"]["training_loss"]["last"]["loss_cls"] > 0
        assert run["measures"]["companion_swap"]["rois"] == 24
        assert "precise" in run["measures"]["evaluation"]
        text = (trained / f"out/runs/{name}/seed_1/settings.yaml").read_text()
        assert f"{BATCH}={name}" in text


def test_probe_and_precise_statistics_of_its_checkpoint(trained, tmp_path, capsys):
    weights = str(trained / "out/runs/shuffled/seed_1/model_final.pth")
    common = ["--config-file", str(SMALL), "--weights", weights, "--output"]
    words = ["--num-gpus", "2", f"{BATCH}=shuffled"]
    assert probe.main([*common, str(tmp_path / "probe"), *words]) == 0
    assert "normalization batch: shuffled, 2 workers" in capsys.readouterr().out
    assert json.loads((tmp_path / "probe/probe.json").read_text())["dataset"] == "coco_2017_val"

    out = tmp_path / "out.pth"
    assert precise_bn.main([*common, str(out), "--num-iter", "2", f"{BATCH}=shuffled"]) == 0
    before = torch.load(weights, weights_only=False)["model"]
    after = torch.load(out, weights_only=False)["model"]
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert changed and all(".norm.running_" in key for key in changed)


def test_checkpoints_of_others_are_measured(trained, tmp_path, monkeypatch, capsys):
    plan = {"name": "given", "train": False, "arms": [{"name": "as it is"}]}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(plan | {"measure": ["companion_swap"]}))
    weights = str(trained / "out/runs/images/seed_1/model_final.pth")
    words = [str(tmp_path / "given.yaml"), "--config-file", str(SMALL), "--weights", weights]
    words += ["--output", str(tmp_path / "out"), "--options", f"{BATCH}=images"]
    assert study.main(words) == 0
    (run,) = json.loads((tmp_path / "out/results.json").read_text())["arms"]["as it is"]["runs"]
    assert run["measures"]["companion_swap"]["images"] == 6


def test_training_with_its_mistakes_resume_and_evaluation(datasets, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SMALL_LAZY_OURS", "1")
    common, whole, resumed = ["--config-file", str(SMALL)], tmp_path / "whole", tmp_path / "resumed"

    def run(*flags: str, output=whole, batch="shuffled", iterations=3) -> int:
        words = [f"{BATCH}={batch}", f"train.output_dir={output}", f"train.max_iter={iterations}"]
        return train.main([*common, *flags, *words, "train.checkpointer.period=2"])

    assert run("--num-gpus", "2") == 0
    shutil.copytree(whole, resumed)
    (resumed / "model_final.pth").unlink()
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    assert run("--num-gpus", "2", "--resume", output=resumed) == 0
    kept, again = (
        torch.load(folder / "model_final.pth", weights_only=False)["model"]
        for folder in (whole, resumed)
    )
    assert kept and all(torch.equal(value, again[key]) for key, value in kept.items())
    weights = f"train.init_checkpoint={whole}/model_final.pth"
    evaluated = tmp_path / "evaluated"
    words = ["--eval-only", "--eval-stats", "population", "minibatch", weights]
    assert train.main([*common, *words, f"train.output_dir={evaluated}"]) == 0
    found = json.loads((evaluated / "results.json").read_text())
    assert found.keys() == {"population", "minibatch"}
    capsys.readouterr()
    assert run("--resume", output=resumed, batch="images", iterations=4) == 2
    printed = capsys.readouterr().err
    assert f"{BATCH}=shuffled" in printed and f"{BATCH}=images" in printed
