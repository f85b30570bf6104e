"""Jobs on one machine: cores and GPUs are shared out, locks are kept, nothing is left behind."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bn_detect.study.execute import Step, execute
from bn_detect.study.scheduler import default_jobs, environments, run_here

from bn_detect.study import execute as execution
from bn_detect.study import scheduler
from bn_detect.study.runs import Run


def make_run(folder: Path, name: str = "arm", *, processes: int = 1, on_gpu: bool = False) -> Run:
    run = Run(
        arm=name,
        seed=1,
        folder=folder / name,
        settings="",
        weights=str(folder / "model.pth"),
        trains=True,
        workers=processes,
        processes=processes,
        measure=("evaluation",),
        imports=(),
        iterations=1,
        train_options=(),
        on_gpu=on_gpu,
        datasets=(),
    )
    run.folder.mkdir(parents=True)
    return run


def test_cores_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "cores", lambda: 12)
    run = make_run(tmp_path, processes=2)
    assert default_jobs(run) == 6
    assert environments(run, 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert environments(run, 100)[0] == {"OMP_NUM_THREADS": "1"}


def test_gpus_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,9")
    run = make_run(tmp_path, processes=2, on_gpu=True)
    assert default_jobs(run) == 1
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(run, 2)] == ["4,5", "6,7"]
    with pytest.raises(ValueError, match="--jobs 3 with 2 GPUs each needs 6; there are 5"):
        environments(run, 3)


def steps_of(monkeypatch, code: str) -> None:
    """Let every run be one Python process."""
    step = Step("training", [sys.executable, "-c", code], "train.log")
    monkeypatch.setattr(execution, "_steps", lambda run, torchrun: iter([step]))


def write_pid(folder: Path) -> str:
    return f"import os, time; open('{folder}/pids', 'a').write(f'{{os.getpid()}}\\n'); "


def test_jobs_run_at_once_and_an_interrupt_ends_them(tmp_path, monkeypatch):
    steps_of(monkeypatch, write_pid(tmp_path) + "time.sleep(100)")
    monkeypatch.setattr(scheduler, "WATCH_SECONDS", 0.0)
    groups = [[make_run(tmp_path, name)] for name in ("one", "two", "three")]
    pids = tmp_path / "pids"

    def watch() -> None:
        if pids.exists() and len(pids.read_text().split()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(groups, 2, watch)
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists()
    assert [group[0].status() for group in groups] == [{"state": "training"}] * 2 + [{}]


def test_a_killed_process_is_a_failed_run_with_its_last_lines(tmp_path, monkeypatch):
    lines = "import os; [print('line', i, flush=True) for i in range(100)]; os.kill(os.getpid(), 9)"
    steps_of(monkeypatch, lines)
    run = make_run(tmp_path)
    run_here([[run]], 1, lambda: None)
    status = run.status()
    assert status["state"] == "failed" and status["log"] == str(run.folder / "train.log")
    assert status["error"].startswith("training ended with SIGKILL\nline 85\n")
    assert status["error"].endswith("line 99")


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path, monkeypatch):
    steps_of(monkeypatch, write_pid(tmp_path))
    run = make_run(tmp_path)
    with open(run.folder / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        work = execute(run)
        for _ in range(5):
            next(work)
        assert not (tmp_path / "pids").exists() and run.status() == {}
    deadline = time.monotonic() + 60
    for _ in work:
        assert time.monotonic() < deadline
    assert len((tmp_path / "pids").read_text().split()) == 1
    assert run.status() == {"state": "measured"}


def test_a_run_whose_checkpoint_nobody_made_fails(tmp_path):
    run = make_run(tmp_path)
    object.__setattr__(run, "trains", False)
    assert list(execute(run)) == []
    assert run.status()["state"] == "failed" and str(run.weights) in run.status()["error"]


def test_a_command_does_not_start_when_its_parent_is_gone(tmp_path):
    wrapper = str(Path(execution.__file__).with_name("with_parent.py"))
    elsewhere = str(os.getpid() + 1)
    command = [sys.executable, wrapper, elsewhere, sys.executable, "-c", "print('ran')"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stdout == "" and "has ended" in ended.stderr
