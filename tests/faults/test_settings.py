"""Settings that do not go together: config and data, a run that is resumed, options."""

from pathlib import Path

import pytest
import torch

from bn_detect.commands import domain_shift, precise_bn, probe, study
from bn_detect.commands.train import main as train
from bn_detect.engine import BNTrainer
from tests.helpers.in_process import config

from .test_commands import CONFIG, study_of

MISTAKES = {
    "TEST.AUG.ENABLED True": (
        train,
        ["--config-file", CONFIG, "TEST.AUG.ENABLED", "True"],
        "TEST.AUG.ENABLED is True, but test-time augmentation is not done here",
    ),
    'DATASETS: {TRAIN: ("x",)} in a config file': (
        train,
        ["--config-file", "mine.yaml"],
        'DATASETS.TRAIN is ("x"; it must be a list, as "[\'x\']"',
    ),
    "a study with --seeds 20260101": (
        study.main,
        ["studies/demo.yaml", "--seeds", "20260101"],
        "--seeds is 20260101; it must be a whole number from 1 to 1000",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.fault("{kind}", should="one line that says what is wrong, exit code 2")
def test_mistakes(kind, capsys, tmp_path, monkeypatch, happened):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text('DATASETS: {TRAIN: ("x",)}\n')
    command, words, said = MISTAKES[kind]
    assert command(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and said in printed
    happened(printed.strip())


@pytest.fixture(scope="module")
def weights(server, tmp_path_factory) -> Path:
    """A folder with a config file of 4 classes for data of 80, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("classes")
    cfg = config(server.root, folder, MODEL__ROI_HEADS__NUM_CLASSES=4)
    cfg.DATASETS.TEST = ("in_process_val",)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": BNTrainer.build_model(cfg).state_dict()}, folder / "in.pth")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    torch.save({"model": BNTrainer.build_model(cfg).state_dict()}, folder / "fits.pth")
    return folder


@pytest.mark.parametrize(
    "name", ["train", "train --eval-only", "precise-bn", "domain-shift", "study", "probe"]
)
@pytest.mark.fault(
    "bn-detect {name}: the dataset has more classes than the model",
    should="one line that names key, dataset and both numbers, exit code 2",
)
def test_classes(name, weights, tmp_path, capsys, monkeypatch, happened):
    monkeypatch.setattr("bn_detect.commands.train.launch", None)  # nothing may start
    monkeypatch.setattr(precise_bn, "launch", None)
    words = ["--config-file", str(weights / "config.yaml")]
    if name.startswith("train"):
        code = train([*words, *name.split()[1:]])
    elif name == "precise-bn":
        paths = ["--weights", str(weights / "in.pth"), "--output", str(tmp_path / "out.pth")]
        code = precise_bn.main([*words, *paths])
    elif name == "study":
        monkeypatch.setattr(study, "run_missing", None)
        code = study.main([*study_of(weights / "config.yaml", tmp_path), str(tmp_path / "out")])
    else:
        paths = ["--weights", str(weights / "in.pth"), "--output", str(tmp_path / "out")]
        command = domain_shift.main if name == "domain-shift" else probe.main
        code = command([*words, *paths])
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert "NUM_CLASSES is 4, but dataset 'in_process_" in printed and "has 80 classes" in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1
    happened(printed.strip())


@pytest.mark.parametrize("number", ["5", "7"])
@pytest.mark.fault(
    "bn-detect domain-shift --num-images {number} with 6 images and 4 virtual workers",
    should="refused, with numbers that can be used; nothing is written",
)
def test_num_images(number, weights, tmp_path, capsys, happened):
    words = ["--config-file", weights / "config.yaml", "--weights", weights / "fits.pth"]
    words += ["--output", tmp_path / "out", "--num-images", number, "SOLVER.IMS_PER_BATCH", 4]
    words += ["MODEL.ROI_BN.VIRTUAL_WORKERS", 4, "MODEL.ROI_HEADS.NUM_CLASSES", 80]
    assert domain_shift.main([str(word) for word in words]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and f"{number} images" in printed, printed
    assert not (tmp_path / "out").exists()
    happened(printed.strip())


@pytest.mark.fault(
    "bn-detect domain-shift --images-of a dataset that is not registered",
    should="one line that names it, exit code 2, before a model is built",
)
def test_images_of(weights, tmp_path, capsys, monkeypatch, happened):
    monkeypatch.setattr(domain_shift, "plan_runs", None)  # which builds the model
    words = ["--config-file", weights / "config.yaml", "--weights", weights / "fits.pth"]
    words += ["--output", tmp_path / "out", "--images-of", "in_process_vla"]
    assert domain_shift.main([str(word) for word in words]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "--images-of in_process_vla" in printed, printed
    assert "in_process_val" in printed and not (tmp_path / "out").exists()
    happened(printed.strip())


CHANGES = {
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 0.123,
    "SEED": 99,
    "MODEL.ROI_BN.BATCH": "worker",
    "SOLVER.IMS_PER_BATCH": 4,
}


@pytest.fixture(scope="module")
def started(server, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("started") / "run"
    server.run(folder, "--num-gpus", 2, **KEYS)
    return folder


KEYS = {"SOLVER__MAX_ITER": 2, "SOLVER__IMS_PER_BATCH": 2}


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.fault(
    "--resume with another {key}",
    should="exit code 2; key, old and new value are named, and the checkpoint stays",
)
def test_resume_with_other_settings(key, server, started, happened):
    kept = [started / name for name in ("model_final.pth", "config.yaml")]
    before = [path.read_bytes() for path in kept]
    keys = KEYS | {key.replace(".", "__"): CHANGES[key]}
    run = server.start(started, "--num-gpus", 2, "--resume", **keys)
    assert run.wait() == 2, run.printed[-2000:]
    (line, *_) = [line for line in run.printed.splitlines() if line.startswith("error: ")]
    assert f"{key} was" in line and f"is {CHANGES[key]!r}" in line
    assert [path.read_bytes() for path in kept] == before
    happened(line.replace(str(started), "FOLDER"))


@pytest.mark.fault(
    "--resume with a larger SOLVER.MAX_ITER", should="the run goes on, and says what changed"
)
def test_resume_further(server, started, happened):
    run = server.run(started, "--num-gpus", 2, "--resume", **KEYS | {"SOLVER__MAX_ITER": 3})
    (line,) = [w for w in run.printed.splitlines() if "SOLVER.MAX_ITER was 2, is 3" in w]
    happened(line[line.index("--resume") :])
