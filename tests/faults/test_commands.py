"""How commands start and what they say: launchers, environments, settings that change."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from bn_detect.commands import domain_shift, precise_bn
from bn_detect.commands.main import SUBCOMMANDS
from bn_detect.commands.train import main as train
from bn_detect.engine import BNTrainer
from bn_detect.runtime.launch import launch
from tests.helpers.in_process import config
from tests.helpers.train_net import REPOSITORY

CONFIG = str(REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.parametrize("module", ["bn_detect", *(m for m, _ in SUBCOMMANDS.values())])
@pytest.mark.fault(
    "python -m bn_detect, or of the module of a subcommand ({module}), with a mistake or nothing",
    should="one line or the usage, exit code 2",
)
def test_as_modules(module, happened):
    name = module if module == "bn_detect" else f"bn_detect.commands.{module}"
    words = ["--config-file", "nowhere.yaml"] if module == "train" else ["--no-such-option"]
    if module == "bn_detect":
        words = ["trian"]
    done = run("-m", name, *words)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "rror: " in done.stderr
    happened(done.stderr.strip().splitlines()[-1])


@pytest.mark.fault(
    "a config file that is not there", should="its line is the first, and the only one"
)
def test_first_line(happened):
    done = run("tools/train_net.py", "--config-file", "nowhere.yaml")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "nowhere.yaml" in done.stderr
    assert done.stderr.count("\n") == 1
    happened(done.stderr.strip())


@pytest.mark.fault(
    "bn-detect --help on a machine that imports slowly",
    should="neither torch nor Detectron2 needed",
)
def test_help_imports_nothing(happened):
    program = (
        "import sys\nsys.argv = ['bn-detect', '--help']\nimport bn_detect_command\n"
        "assert bn_detect_command.main() == 0\n"
        "assert not {'torch', 'detectron2', 'numpy'} & sys.modules.keys()\n"
    )
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in SUBCOMMANDS)
    happened("neither is imported")


LAUNCHERS = {
    "RANK alone": {"RANK": "0"},
    "WORLD_SIZE alone": {"WORLD_SIZE": "2"},
    "no MASTER_PORT": {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
    },
    "a rank beyond the world": {
        "RANK": "2",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    },
    "text": {
        "RANK": "a",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    },
}


@pytest.mark.parametrize("kind", LAUNCHERS)
@pytest.mark.parametrize("command", [train, precise_bn.main])
@pytest.mark.fault(
    "a launcher's variables are half set: {kind}",
    should="one line that names them, exit code 2; nothing hangs",
)
def test_launchers(kind, command, monkeypatch, capsys, tmp_path, happened):
    for name, value in LAUNCHERS[kind].items():
        monkeypatch.setenv(name, value)
    words = ["--config-file", CONFIG]
    if command is not train:
        (tmp_path / "in.pth").write_bytes(b"not read")
        words += ["--weights", str(tmp_path / "in.pth"), "--output", str(tmp_path / "out.pth")]
    assert command(words) == 2
    printed = capsys.readouterr().err
    assert (printed.count("\n") == 1 and "RANK" in printed) or "WORLD_SIZE" in printed
    assert "torchrun" in printed
    happened(printed.strip())


def _say(folder: str) -> None:
    Path(folder, str(comm.get_rank())).touch()


@pytest.mark.fault(
    "TMPDIR holds #, ?, % and a space", should="two workers meet in a file there all the same"
)
def test_odd_temporary_folder(tmp_path, monkeypatch, happened):
    odd = tmp_path / "a#b?c %41"
    odd.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    launch(_say, 2, timeout=timedelta(seconds=60), args=(str(tmp_path),))
    assert {"0", "1"} <= set(os.listdir(tmp_path))
    happened("they met, and the folder is empty again")
    assert os.listdir(odd) == []


@pytest.mark.fault(
    "HOME is unset and the user has no home directory", should="a dataset is checked all the same"
)
def test_no_home(server, tmp_path, happened):
    program = (
        "import os, pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "os.environ.pop('HOME', None), os.environ.pop('XDG_CACHE_HOME', None)\n"
        "from bn_detect.data import check_datasets\n"
        "print(check_datasets(['coco_2017_val'])['coco_2017_val'].images)\n"
    )
    done = run("-W", "ignore", "-c", program, DETECTRON2_DATASETS=str(server.root))
    assert done.returncode == 0, done.stderr[-2000:]
    happened(f"{done.stdout.strip()} images checked")


@pytest.fixture(scope="module")
def weights(server, tmp_path_factory) -> Path:
    """A config file of 4 classes for data of 80, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("classes")
    cfg = config(server.root, folder, MODEL__ROI_HEADS__NUM_CLASSES=4)
    cfg.DATASETS.TEST = ("in_process_val",)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": BNTrainer.build_model(cfg).state_dict()}, folder / "in.pth")
    return folder


@pytest.mark.parametrize("name", ["train", "train --eval-only", "precise-bn", "domain-shift"])
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
    else:
        paths = ["--weights", str(weights / "in.pth"), "--output", str(tmp_path / "out")]
        code = domain_shift.main([*words, *paths, "--corruptions", "contrast"])
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert "NUM_CLASSES is 4, but dataset 'in_process_" in printed and "has 80 classes" in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1
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
    before = (started / "model_final.pth").read_bytes()
    keys = KEYS | {key.replace(".", "__"): CHANGES[key]}
    run = server.start(started, "--num-gpus", 2, "--resume", **keys)
    assert run.wait() == 2, run.printed[-2000:]
    (line, *_) = [line for line in run.printed.splitlines() if line.startswith("error: ")]
    assert f"{key} was" in line and f"is {CHANGES[key]!r}" in line
    assert (started / "model_final.pth").read_bytes() == before
    happened(line.replace(str(started), "FOLDER"))


@pytest.mark.fault(
    "--resume with a larger SOLVER.MAX_ITER", should="the run goes on, and says what changed"
)
def test_resume_further(server, started, happened):
    run = server.run(started, "--num-gpus", 2, "--resume", **KEYS | {"SOLVER__MAX_ITER": 3})
    (line,) = [w for w in run.printed.splitlines() if "SOLVER.MAX_ITER was 2, is 3" in w]
    happened(line[line.index("--resume") :])
