"""How commands end, and what they are started by: interruptions, launchers, environments."""

import contextlib
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from detectron2.utils import comm

from bn_detect.commands import benchmark, data, demo, domain_shift, precise_bn, probe, study
from bn_detect.commands.train import main as train
from bn_detect.runtime.launch import launch
from tests.helpers.train_net import REPOSITORY

from .fork_server import in_session, wait_for

CONFIG = str(REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environment,
        timeout=300,
    )


def study_of(base: Path, folder: Path) -> list[str]:
    """Write a study of one arm; return the command line up to its --output's folder."""
    content = {"name": "x", "base": str(base), "measure": ["companion_swap"]}
    (folder / "study.yaml").write_text(yaml.safe_dump(content | {"arms": [{"name": "an arm"}]}))
    return ["--study", str(folder / "study.yaml"), "--output"]


COMMANDS = {
    "train": (train, ["--config-file", CONFIG]),
    "precise-bn": (
        precise_bn.main,
        ["--config-file", CONFIG, "--weights", CONFIG, "--output", "out.pth"],
    ),
    "domain-shift": (domain_shift.main, ["--config-file", CONFIG, "--weights", CONFIG]),
    "probe": (probe.main, ["--config-file", CONFIG, "--weights", CONFIG]),
    "study": (study.main, ["studies/demo.yaml"]),
    "data": (data.main, ["check", "nothing_like_this"]),
    "benchmark": (benchmark.main, ["traffic"]),
    "demo": (demo.main, ["--only", "shapes"]),
}
EARLY = {
    "train": "bn_detect.commands.train.read_config",
    "precise-bn": "bn_detect.commands.precise_bn.read_config",
    "domain-shift": "bn_detect.commands.domain_shift.read_config",
    "probe": "bn_detect.configuration.reading.read_config",
    "study": "bn_detect.commands.study.read_study",
    "data": "bn_detect.commands.data.check_dataset",
    "benchmark": "bn_detect.benchmarks.traffic.run",
    "demo": "bn_detect.commands.study.read_study",
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.fault("Ctrl-C in bn-detect {name}", should="one line, exit code 130")
def test_interrupted(name, monkeypatch, capsys, tmp_path, happened):
    monkeypatch.setattr(EARLY[name], lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.chdir(tmp_path)
    command, words = COMMANDS[name]
    assert command(words) == 130
    printed = capsys.readouterr().err
    assert printed.startswith("interrupted by SIGINT") and printed.count("\n") == 1
    happened(printed.strip())


@pytest.mark.fault(
    "Ctrl-C in bn-detect benchmark, to all its processes while they start",
    should="one line, exit code 130; no process is left",
)
def test_interrupted_ranks(tmp_path, happened):
    words = ["-W", "ignore", "-m", "bn_detect", "benchmark", "traffic", "--ranks", "2"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *words, "--output", str(tmp_path)],
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait_for(lambda: len(in_session(process.pid)) >= 3)  # one of them is multiprocessing's own
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    wait_for(lambda: not in_session(process.pid))
    printed = (tmp_path / "log").read_text()
    assert printed == "interrupted by SIGINT\n"
    happened(printed.strip())


STARTING = {
    "study": "interrupted by SIGINT; to go on: bn-detect study",
    "train": "interrupted by SIGINT; go on from the last checkpoint with --resume",
}


@pytest.mark.parametrize("command", STARTING)
@pytest.mark.fault(
    "Ctrl-C in bn-detect {command}, to all its processes while they start",
    should="one line, exit code 130; no process is left",
)
def test_interrupted_while_starting(command, studies, server, tmp_path, happened):
    if command == "study":
        arguments = [*studies.of_study, str(tmp_path), "--options"]
        arguments += ["DATASETS.TRAIN", "('coco_2017_train',)"]
        arguments += ["DATASETS.TEST", "('coco_2017_val',)"]
    else:
        arguments = server.command.arguments(tmp_path, "--num-gpus", 2)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-u", "-m", "bn_detect", command, *arguments],
            cwd=REPOSITORY,
            env=server.command.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def importing() -> bool:
        """Whether another process of it is at its imports."""
        others = (pid for pid in in_session(process.pid) if pid != process.pid)
        with contextlib.suppress(OSError):  # one of them ended
            return any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in others)
        return False

    wait_for(importing)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    wait_for(lambda: not in_session(process.pid))
    printed = (tmp_path / "log").read_text()
    assert "Traceback" not in printed and "KeyboardInterrupt" not in printed, printed
    *_, last = printed.splitlines()
    assert last.startswith(STARTING[command])
    happened(last.replace(str(studies.file.parent), "FOLDER").replace(str(tmp_path), "FOLDER"))


@pytest.mark.parametrize("name", ["study", "domain-shift"])
@pytest.mark.fault(
    "bn-detect {name} under torchrun (WORLD_SIZE=2)", should="one line, exit code 2; no hang"
)
def test_studies_under_torchrun(name, capsys, tmp_path, monkeypatch, happened):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    command, words = COMMANDS[name]
    assert command(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: WORLD_SIZE is 2") and printed.count("\n") == 1
    happened(printed.strip())


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
@pytest.mark.parametrize("name", ["train", "precise-bn"])
@pytest.mark.fault(
    "a launcher's variables are half set for bn-detect {name}: {kind}",
    should="one line that names them, exit code 2; nothing hangs",
)
def test_launchers(kind, name, monkeypatch, capsys, tmp_path, happened):
    for variable, value in LAUNCHERS[kind].items():
        monkeypatch.setenv(variable, value)
    (command, _), words = COMMANDS[name], ["--config-file", CONFIG]
    if name == "precise-bn":
        (tmp_path / "in.pth").write_bytes(b"not read")
        words += ["--weights", str(tmp_path / "in.pth"), "--output", str(tmp_path / "out.pth")]
    assert command(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "torchrun" in printed
    assert all(name in printed for name in LAUNCHERS[kind] if not name.startswith("MASTER"))
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
