"""Two processes that write to one place, and disks that cannot be written, learnt in time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bn_detect.commands import precise_bn, probe
from bn_detect.engine import BNTrainer
from bn_detect.runtime.files import write_json
from bn_detect.runtime.folder_lock import sole_user
from bn_detect.study.folders import locked
from tests.helpers.in_process import config
from tests.helpers.train_net import REPOSITORY

from .fork_server import wait_for
from .studies import one_line
from .test_disk import files_no_larger_than, listed, mounted

LONG = {"SOLVER__MAX_ITER": 100000, "SOLVER__CHECKPOINT_PERIOD": 2}
WRITER = """
import sys
from bn_detect.runtime.files import write_json
for _ in range(int(sys.argv[2])):
    write_json(sys.argv[1], [int(sys.argv[3])] * 2000)
"""


@pytest.mark.fault(
    "a second training in the OUTPUT_DIR of one that runs",
    should="exit code 2, folder and process are named; the first goes on, and loses nothing",
)
def test_two_trainings(server, tmp_path, happened):
    first = server.start(tmp_path, **LONG)
    wait_for((tmp_path / "last_checkpoint").exists)
    second = server.start(tmp_path, SOLVER__MAX_ITER=2)
    assert second.wait() == 2, second.printed[-2000:]
    (line,) = [line for line in second.printed.splitlines() if line.startswith("error: ")]
    assert f"OUTPUT_DIR {tmp_path} is in use by process {first.pid} on" in line
    assert not (tmp_path / "model_final.pth").exists()
    happened(line.replace(str(tmp_path), "FOLDER").replace(str(first.pid), "PID")[:100])
    before = (tmp_path / "last_checkpoint").read_text()
    wait_for(lambda: (tmp_path / "last_checkpoint").read_text() != before)
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 143
    third = server.run(tmp_path, "--resume", SOLVER__MAX_ITER=1)
    assert third.wait() == 0


@pytest.mark.fault(
    "bn-detect train --eval-only in the OUTPUT_DIR of a training that runs, and after it",
    should="exit code 2 while it runs; afterwards it evaluates, and checkpoints and config.yaml "
    "stay as they are",
)
def test_evaluation_beside_a_training(server, tmp_path, happened):
    training = server.start(tmp_path, **LONG)
    wait_for((tmp_path / "last_checkpoint").exists)
    keys = {"MODEL__WEIGHTS": tmp_path / "model_0000001.pth", "SOLVER__BASE_LR": 0.5}
    keys |= {"DATASETS__TEST": "('coco_2017_val',)"}
    refused = server.start(tmp_path, "--eval-only", **keys)
    assert refused.wait() == 2, refused.printed[-2000:]
    (line,) = [line for line in refused.printed.splitlines() if line.startswith("error: ")]
    assert f"OUTPUT_DIR {tmp_path} is in use by process {training.pid} on" in line
    os.kill(training.pid, signal.SIGTERM)
    assert training.wait() == 143
    kept = {p: p.read_bytes() for p in (tmp_path / "config.yaml", *tmp_path.glob("*.pth"))}
    server.run(tmp_path, "--eval-only", **keys)
    assert (tmp_path / "results.json").exists()
    assert {path: path.read_bytes() for path in kept} == kept and len(kept) > 1
    refusal = line[: line.index(f" {training.pid}")].replace(str(tmp_path), "FOLDER")
    happened(f"{refusal} PID; afterwards evaluated")


@pytest.mark.fault(
    "two processes write one file, again and again",
    should="no error; at every moment the file is what one of them wrote, and nothing else is left",
)
def test_two_writers(tmp_path, size, happened):
    path, count = tmp_path / "results.json", size(100, 1000)
    write_json(path, [0] * 2000)
    command = [sys.executable, "-W", "ignore", "-c", WRITER, path, str(count)]
    writers = [
        subprocess.Popen([*command, str(n)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        for n in (1, 2)
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        values = set(path.read_text().split(",\n "))
        seen |= {value.strip("[] \n") for value in values}
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert seen <= {"0", "1", "2"} and os.listdir(tmp_path) == ["results.json"]
    happened(f"{2 * count} writes, no error, no mixture, no file left")


@pytest.mark.fault(
    "a link with the name of the temporary file that a checkpoint was written through",
    should="the file that it names is not touched",
)
def test_planted_link(tmp_path, happened):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".results.json.tmp").symlink_to(victim)
    write_json(folder / "results.json", {"AP": 1})
    assert victim.read_text() == "precious"
    happened("untouched: temporary names are random, and are not opened through links")


@pytest.mark.parametrize("name", [".in_use", ".lock"])
@pytest.mark.fault(
    "a link with the name of a lock, {name}", should="refused; the file that it names stays"
)
def test_planted_lock(name, tmp_path, happened):
    victim, link = tmp_path / "victim", tmp_path / "out" / name
    victim.write_text("precious")
    link.parent.mkdir()
    link.symlink_to(victim)
    lock = sole_user(link.parent, "OUTPUT_DIR") if name == ".in_use" else locked(link)
    with pytest.raises(OSError, match=name) as error, lock:
        pass
    assert victim.read_text() == "precious"
    happened(str(error.value).replace(str(tmp_path), "FOLDER"))


@pytest.fixture(scope="module")
def rewriting(server, tmp_path_factory):
    """A config file and a checkpoint of it, for `precise_bn.main`."""
    folder = tmp_path_factory.mktemp("rewriting")
    cfg = config(server.root, folder)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": BNTrainer.build_model(cfg).state_dict()}, folder / "in.pth")
    (folder / "in.pth").chmod(0o640)
    return folder


def words(folder: Path, *more: object) -> list[str]:
    weights = ["--weights", str(folder / "in.pth"), "--num-iter", "1"]
    return ["--config-file", str(folder / "config.yaml"), *weights, *map(str, more)]


@pytest.mark.fault(
    "bn-detect precise-bn --in-place on a link to the checkpoint",
    should="the link stays; the file that it names is rewritten, with its mode",
)
def test_in_place_on_a_link(rewriting, tmp_path, happened):
    link, file = tmp_path / "link.pth", rewriting / "in.pth"
    before = file.read_bytes()
    link.symlink_to(file)
    arguments = words(rewriting, "--in-place")
    arguments[arguments.index("--weights") + 1] = str(link)
    assert precise_bn.main(arguments) == 0
    assert link.is_symlink() and file.read_bytes() != before
    assert file.stat().st_mode & 0o777 == 0o640
    happened("so it was, mode 640")


@pytest.mark.parametrize("disk", ["read-only", "full (ulimit -f)"])
@pytest.mark.fault(
    "bn-detect precise-bn with an output that cannot be written: the disk is {disk}",
    should="one line that names the file, exit code 2, before the pass",
)
def test_precise_bn(disk, rewriting, tmp_path, capsys, monkeypatch, happened):
    monkeypatch.setattr(precise_bn, "launch", None)  # no pass may start
    if disk == "read-only":
        with mounted(tmp_path / "ro", "ro") as folder:
            output = folder / "out.pth"
            assert precise_bn.main(words(rewriting, "--output", output)) == 2
    else:
        output = tmp_path / "out.pth"
        with files_no_larger_than(100_000):
            assert precise_bn.main(words(rewriting, "--output", output)) == 2
        assert listed(tmp_path) == []
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and str(output) in printed
    happened(printed.strip().replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "bn-detect probe with an --output that cannot be written: the disk is full (ulimit -f)",
    should="one line that names the file, exit code 2, before anything is probed",
)
def test_probe(rewriting, tmp_path, capsys, monkeypatch, happened):
    monkeypatch.setattr(probe, "_detectron2", None)  # which builds and reads
    with files_no_larger_than(1000):
        assert probe.main([*words(rewriting)[:4], "--output", str(tmp_path)]) == 2
    happened(one_line(capsys, tmp_path / "probe.json").replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "bn-detect precise-bn --evaluate in the OUTPUT_DIR of a training that runs",
    should="one line that names the folder, exit code 2; nothing is written",
)
def test_evaluation_by_precise_bn(rewriting, tmp_path, capsys, happened):
    output, folder = tmp_path / "out.pth", tmp_path / "run"
    arguments = words(rewriting, "--evaluate", "--output", output, "OUTPUT_DIR", folder)
    with sole_user(folder, "OUTPUT_DIR"):
        assert precise_bn.main(arguments) == 2
    line = one_line(capsys, f"OUTPUT_DIR {folder} is in use by process")
    assert listed(folder) == [".in_use"] and not output.exists()
    happened(line[: line.index(" process")].replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "Ctrl-C in bn-detect precise-bn --evaluate, when the checkpoint is written",
    should="one line that does not deny it, exit code 130",
)
def test_interrupted_after_writing(rewriting, tmp_path, capsys, monkeypatch, happened):
    output, done = tmp_path / "out.pth", []

    def evaluate_under(*_) -> dict:
        done.append(output.exists())
        if output.exists():
            os.kill(os.getpid(), signal.SIGINT)
        return {"population": {}}

    monkeypatch.setattr(precise_bn, "evaluate_under", evaluate_under)
    more = ("--evaluate", "--output", output, "OUTPUT_DIR", tmp_path / "run")
    assert precise_bn.main(words(rewriting, *more)) == 130
    printed = capsys.readouterr()
    assert done == [False, True] and f"Written to {output}" in printed.out
    (line,) = [line for line in printed.err.splitlines() if line.startswith("interrupted")]
    assert "nothing was written" not in line
    happened(line)
