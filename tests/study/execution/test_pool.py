"""Jobs on one machine: cores and GPUs are shared out, locks are kept, nothing is left behind."""

import fcntl
import time
from pathlib import Path

import pytest

from bn_detect.study.execution import child, execute, pool
from bn_detect.study.execution.execute import Task
from bn_detect.study.execution.pool import default_jobs, environments, run_here
from bn_detect.study.runs import Run

from . import tasks


def make_run(folder: Path, name: str = "arm", *, processes: int = 1, on_gpu: bool = False) -> Run:
    run = Run(
        arm=name,
        seed=1,
        folder=folder / name,
        settings="",
        weights=str(folder / "model.pth"),
        trains=True,
        start="",
        workers=processes,
        processes=processes,
        measure={"evaluation": {}},
        imports=(),
        iterations=1,
        train_options=(),
        on_gpu=on_gpu,
        datasets=(),
    )
    run.folder.mkdir(parents=True)
    return run


def groups(folder: Path, number: int, **settings) -> list[list[Run]]:
    return [[make_run(folder, f"arm {i}", **settings)] for i in range(number)]


def test_cores_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool, "cores", lambda: 12)
    many = groups(tmp_path, 8, processes=2)
    assert default_jobs(many) == 6 and default_jobs(many[:2]) == 2
    assert environments(many, 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert environments(many, 100)[0] == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environments(many, 3)[0] == {"OMP_NUM_THREADS": "5"}


def test_gpus_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,9")
    many = groups(tmp_path, 3, processes=2, on_gpu=True)
    assert default_jobs(many) == 1
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(many, 2)] == ["4,5", "6,7"]
    with pytest.raises(ValueError, match="--jobs 3 with 2 GPUs each needs 6; there are 5"):
        environments(many, 3)


def one_task(monkeypatch, step: child.Step) -> None:
    """Let every run be one process that does `step`."""
    task = Task("training", step, "train.log")
    monkeypatch.setattr(execute, "_tasks", lambda run: iter([task]))


def test_jobs_run_at_once_and_an_interrupt_ends_them(tmp_path, monkeypatch):
    one_task(monkeypatch, tasks.stay)
    monkeypatch.setattr(pool, "WATCH_SECONDS", 0.0)
    three = groups(tmp_path, 3)
    pids = tmp_path / "pids"

    def watch() -> None:
        if pids.exists() and len(pids.read_text().splitlines()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(three, 2, watch)
    for line in pids.read_text().splitlines():
        assert not Path(f"/proc/{line.split()[0]}").exists()
    assert [group[0].status() for group in three] == [{"state": "training"}] * 2 + [{}]


def test_a_killed_process_is_a_failed_run_with_its_last_lines(tmp_path, monkeypatch):
    one_task(monkeypatch, tasks.die)
    run = make_run(tmp_path)
    run_here([[run]], 1, lambda: None)
    status = run.status()
    assert status["state"] == "failed" and status["log"] == str(run.folder / "train.log")
    assert status["error"].startswith("training ended with SIGKILL\nline 85\n")
    assert status["error"].endswith("line 99")


def test_a_mistake_is_exit_code_2_and_one_line_at_the_end(tmp_path, monkeypatch):
    one_task(monkeypatch, tasks.refuse)
    run = make_run(tmp_path)
    run_here([[run]], 1, lambda: None)
    assert run.status()["error"].startswith("training ended with exit code 2")
    assert run.status()["error"].endswith("\nerror: arm cannot work")


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path, monkeypatch):
    one_task(monkeypatch, tasks.note)
    run = make_run(tmp_path)
    with open(run.folder / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        work = execute.execute(run)
        for _ in range(5):
            next(work)
        assert not (tmp_path / "pids").exists() and run.status() == {}
    deadline = time.monotonic() + 60
    for _ in work:
        assert time.monotonic() < deadline
    assert len((tmp_path / "pids").read_text().splitlines()) == 1
    assert run.status() == {"state": "measured"}


def test_a_run_whose_checkpoint_nobody_made_fails(tmp_path):
    run = make_run(tmp_path)
    object.__setattr__(run, "trains", False)
    assert list(execute.execute(run)) == []
    assert run.status()["state"] == "failed" and str(run.weights) in run.status()["error"]
    object.__setattr__(run, "trains", True)
    object.__setattr__(run, "start", "gone.pth")
    assert list(execute.execute(run)) == []
    assert "gone.pth" in run.status()["error"]


def test_a_step_sees_its_own_environment_and_session(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    process = child.start(tasks.look, tmp_path, tmp_path / "log", {"MARK": "5"})
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "seen").read_text() == "5 False True"
