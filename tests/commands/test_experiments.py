"""tools/experiments.py end to end, tiny; killed in the middle and started again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bn_detect.commands.experiments import main

REPOSITORY = Path(__file__).parents[2]
OPTIONS = {
    "SOLVER.MAX_ITER": "4",
    "SOLVER.IMS_PER_BATCH": "16",
    "DATASETS.TRAIN": "('digits_train@32',)",
    "DATASETS.TEST": "('digits_val@32',)",
}


def command(output: Path, *flags: str) -> list[str]:
    program = [sys.executable, str(REPOSITORY / "tools/experiments.py"), "--seeds", "2"]
    options = [text for item in OPTIONS.items() for text in item]
    return [*program, "--output", str(output), *flags, "--options", *options]


def start(arguments: list[str], root: Path) -> subprocess.Popen:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(output: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in output.rglob("result.json")}


def test_killed_it_goes_on_and_reports(tmp_path):
    output = tmp_path / "out"
    arguments = command(output, "--only", "c", "d", "e", "--jobs", "1")
    process = start(arguments, tmp_path)
    deadline = time.monotonic() + 120
    while not finished(output) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = finished(output)
    assert 0 < len(done) < 14, "it was not killed in the middle"

    process = start(arguments, tmp_path)
    printed, _ = process.communicate(timeout=250)
    assert process.returncode == 0, printed[-3000:]
    assert "14/14" in printed
    after = finished(output)
    assert len(after) == 14 and all(after[path] == when for path, when in done.items())

    runs = json.loads((output / "results.json").read_text())
    assert {(r["experiment"], r["arm"], r["seed"]) for r in runs} == {
        *(("averages", f"scale_{scale}", seed) for scale in (1, 8) for seed in (1, 2)),
        *(("domains", "clean", seed) for seed in (1, 2)),
        *(
            ("same_class", arm, seed)
            for arm in ("mixed", "same_class", "shuffled", "global")
            for seed in (1, 2)
        ),
    }
    document = (output / "experiments.md").read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", document)
    assert len(pictures) == 4 and all((output / picture).is_file() for picture in pictures)
    for heading in ("## (c)", "### Severity 5", "## (e)"):
        assert heading in document and heading in printed
    errors = [r["found"]["val_population"] for r in runs if r["arm"] == "shuffled"]
    (row,) = (line for line in document.splitlines() if "`shuffled`" in line)
    assert f" {sum(errors) / 2:.1f} [" in row


@pytest.fixture
def no_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bn_detect.commands.experiments.prepare_dataset", lambda name: None)


def test_mistakes_end_before_anything_runs(no_runs, tmp_path, capsys):
    assert main(["--seeds", "0"]) == 2
    assert "--seeds 0 --jobs 2: each must be at least 1" in capsys.readouterr().err
    folder = tmp_path / "output/experiments/runs/domains/clean/seed_1"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"job": {}, "found": {}}')
    assert main(["--only", "d", "--seeds", "1"]) == 2
    assert "holds a run with other settings" in capsys.readouterr().err
