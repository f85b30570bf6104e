"""Single runs for a scheduler: --only ARM/SEED, jobs at their time limit, one machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bn_detect.commands.study import main
from bn_detect.study.execution import pool, slurm
from bn_detect.study.execution.slurm import run_on_cluster
from bn_detect.study.folders import prepare_folders
from bn_detect.study.reading import read_study
from bn_detect.study.runs import plan_runs

from ..helpers.train_net import REPOSITORY, wait_for
from .conftest import write_study

LONG = 400  # iterations: some seconds


def study_file(folder, **settings):
    arms = [
        {"name": "Per worker", "options": {"MODEL.ROI_BN.BATCH": "worker"}},
        {"name": "by images", "options": {"MODEL.ROI_BN.BATCH": "images"}},
        {"name": "as it is", "inference_of": "Per worker"},
    ]
    return write_study(folder, arms, measure=["evaluation"], **settings)


def test_cells_one_by_one_and_then_the_report(datasets, tmp_path, capsys, monkeypatch):
    file, out = study_file(tmp_path, options={"SOLVER.MAX_ITER": 2}), tmp_path / "out"
    words = [str(file), "--output", "out"]
    monkeypatch.chdir(tmp_path)  # a path is relative to where the command is given
    assert main([*words, "--only", "as it is/1"]) == 2
    assert "do --only per_worker/1 first" in capsys.readouterr().err
    assert not out.exists()
    for only in ("Per worker/1", "by_images/1", "as_it_is/1"):
        assert main([*words, "--only", only]) == 0
        assert "without --only reports" in capsys.readouterr().out
        assert not (out / "results.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model_*.pth")}
    assert len(before) == 2
    assert main(words) == 0
    assert (out / "report.html").exists()
    arms = json.loads((out / "results.json").read_text())["arms"]
    assert [len(arm["runs"]) for arm in arms.values()] == [1, 1, 1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model_*.pth")} == before


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("per_workr/1", "did you mean per_worker/1?"),
        ("per_worker/2", "a seed from 1 to 1"),
        ("per_worker", "it must be ARM/SEED"),
    ],
)
def test_mistakes(only, said, datasets, tmp_path, capsys):
    words = [str(study_file(tmp_path)), "--output", str(tmp_path / "out")]
    assert main([*words, "--only", only]) == 2
    assert said in capsys.readouterr().err


def test_several_machines_are_refused(datasets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert main([str(study_file(tmp_path)), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "SLURM_JOB_NUM_NODES is 2" in said and "--nodes 1" in said
    assert not (tmp_path / "out").exists()


def long_run(folder):
    keys = {"SOLVER.MAX_ITER": LONG, "SOLVER.CHECKPOINT_PERIOD": 100_000}
    study = read_study(study_file(folder, options=keys))
    (run,) = plan_runs(study, folder / "out")[1]
    return run


def checkpoints(run) -> list[str]:
    return sorted(path.name for path in run.folder.glob("model_*.pth"))


def test_a_job_at_its_time_limit_goes_on(datasets, tmp_path, monkeypatch):
    """By submitit's local executor; for submitit, a limit below 10 minutes is reached at once."""
    monkeypatch.setattr(slurm, "MINUTES", 9)
    run, told = long_run(tmp_path), []
    prepare_folders([run])

    def watch() -> None:
        if not told and run.iterations_done() >= 20:
            (log,) = (tmp_path / "slurm").glob("*_0_log.err")
            controller = log.name.split("_")[0]
            (job,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
            os.kill(int(job), signal.SIGUSR2)
            told.append(job)

    run_on_cluster([[run]], tmp_path / "slurm", watch, cluster="local")
    assert run.status() == {"state": "measured"}
    written = checkpoints(run)
    assert len(written) == 2 and written[1] == "model_final.pth"
    done = int(written[0][len("model_") : -len(".pth")]) + 1
    log = (run.folder / "train.log").read_text()
    assert log.count("Starting training from iteration 0\n") == 1
    assert log.count(f"Starting training from iteration {done}\n") == 1
    assert 20 <= done < LONG


def test_an_interrupted_cell_writes_a_checkpoint(datasets, tmp_path):
    run = long_run(tmp_path)
    words = ["study", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    words += ["--only", "by images/1"]
    command = [sys.executable, "-m", "bn_detect", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, **quiet) as process:
        wait_for(lambda: run.iterations_done() >= 20, 120)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "interrupted by SIGTERM" in said
    (name,) = checkpoints(run)
    assert name != "model_final.pth"


def test_what_does_not_end_is_killed(tmp_path, monkeypatch):
    from .execution import tasks
    from .execution.test_pool import groups, one_task

    one_task(monkeypatch, tasks.stay_whatever_comes)
    monkeypatch.setattr(pool, "END_SECONDS", 0.5)
    monkeypatch.setattr(pool, "WATCH_SECONDS", 0.0)
    pids = tmp_path / "pids"

    def watch() -> None:
        if pids.exists() and pids.read_text().endswith("\n"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run_here(groups(tmp_path, 1), 1, watch)
    pid = int(pids.read_text().split()[0])
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(pid, 0)
