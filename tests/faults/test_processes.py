"""Workers that are killed, interrupted or stopped."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from .fork_server import ForkServer, Run, wait_for
from .forked import moments

BOUND = 20.0  # seconds; on a busy machine too. Of --dist-timeout only a silent worker needs any
KEYS = {
    "SOLVER__MAX_ITER": 8,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "TEST__EVAL_PERIOD": 4,
    "DATASETS__TEST": "('coco_2017_val',)",
    "TEST__PRECISE_BN__ENABLED": True,
    "TEST__PRECISE_BN__NUM_ITER": 1,
    "MODEL__ROI_BN__VIRTUAL_WORKERS": 2,
}
LONG = KEYS | {"SOLVER__MAX_ITER": 100000, "TEST__EVAL_PERIOD": 0, "DATASETS__TEST": "()"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def last(folder: Path) -> int:
    """Iterations done in the newest checkpoint, which must load; 0: there is none."""
    if not (folder / "last_checkpoint").exists():
        return 0
    name = (folder / "last_checkpoint").read_text()
    return torch.load(folder / name, weights_only=True)["iteration"] + 1


def assert_resumes(server: ForkServer, folder: Path, whole: Path) -> None:
    """--resume goes on from the newest checkpoint, to the weights of the uninterrupted run."""
    done = last(folder)
    run = server.run(folder, "--num-gpus", 2, "--resume", **KEYS)
    assert f"Starting training from iteration {done}" in run.printed
    ours, theirs = weights(folder), weights(whole)
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    server.run(folder, "--num-gpus", 2, **KEYS)
    return folder


@pytest.mark.fault(
    "kill -9 of rank 0 or 1, in forward, backward, a collective, PreciseBN, evaluation or "
    "checkpoint writing, at random moments",
    should=f"the others end within {BOUND:.0f} s, with an error that names rank and signal; no "
    "process is left; the newest checkpoint loads; --resume ends with the weights of an "
    "uninterrupted run, bit for bit",
)
@pytest.mark.timeout(900)
def test_killed(server, whole, tmp_path, size, happened):
    kills = moments(size(2, 20))
    slowest, resumed = 0.0, []
    for number, moment in enumerate(kills):
        folder = tmp_path / str(number)
        run = server.start(folder, "--num-gpus", 2, moment=moment, **KEYS)
        wait_for(lambda run=run: len(run.workers()) == 2 or run._ended.is_set())
        victim = run.workers()[moment.rank]
        wait_for(lambda victim=victim: not alive(victim))
        slowest = max(slowest, seconds_to_end(run))
        name = f"worker {moment.rank} of 2 died (SIGKILL)"
        assert run.wait(0) == 1 and name in run.printed, (moment, run.printed[-3000:])
        resumed.append(last(folder))
        assert_resumes(server, folder, whole)
    phases = ", ".join(sorted({moment.phase for moment in kills}))
    happened(
        f"{len(kills)} kills ({phases}): all named, the last process gone after {slowest:.1f} s at "
        f"most; resumed from iteration {min(resumed)} to {max(resumed)}, all equal"
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def seconds_to_end(run: Run) -> float:
    begin = time.monotonic()
    run.wait(BOUND)
    wait_for(lambda: not run.left(), seconds=BOUND)
    return time.monotonic() - begin


INTERRUPTIONS = [
    ("SIGTERM", "the launcher"),
    ("SIGTERM", "all its processes"),
    ("SIGTERM", "one worker"),
    ("SIGINT", "the launcher"),
    ("SIGINT", "all its processes"),  # which Ctrl-C is
    ("SIGHUP", "all its processes"),  # which a closed terminal is
]


@pytest.mark.parametrize(("name", "whom"), INTERRUPTIONS)
@pytest.mark.fault(
    "{name} to {whom}, in training",
    should="a checkpoint of the iteration at hand, exit code 128 + signal; --resume ends with the "
    "weights of an uninterrupted run, bit for bit",
)
def test_interrupted(server, whole, tmp_path, name, whom, size, happened):
    folder, number = tmp_path / "run", signal.Signals[name]
    # Data loading processes are hit as well.
    run = server.start(folder, "--num-gpus", 2, DATALOADER__NUM_WORKERS=1, **LONG)
    wait_for((folder / "last_checkpoint").exists)
    begin = time.monotonic()
    if whom == "all its processes":
        os.killpg(run.pid, number)
    else:
        os.kill(run.pid if whom == "the launcher" else run.workers()[1], number)
    code = run.wait()
    assert code == 128 + number, run.printed[-3000:]
    seconds = time.monotonic() - begin
    assert f"interrupted by {name}" in run.printed
    wait_for(lambda: not run.left(), seconds=BOUND)
    done = last(folder)
    newest = max(int(n) for n in re.findall(r"model_(\d+)\.pth", " ".join(os.listdir(folder))))
    assert done == newest + 1
    happened(f"exit code {code} after {seconds:.1f} s, checkpoint of iteration {done}")
    if done < 8 and (name, whom) in INTERRUPTIONS[: size(1, 5)]:
        assert_resumes(server, folder, whole)
        happened("resumed to equal weights")


@pytest.mark.fault(
    "a second Ctrl-C, in a run that does not end at the first", should="it ends at once"
)
def test_interrupted_twice(server, tmp_path, happened):
    run = server.start(tmp_path, "--num-gpus", 2, **LONG)
    wait_for((tmp_path / "last_checkpoint").exists)
    os.kill(run.workers()[1], signal.SIGSTOP)
    os.kill(run.pid, signal.SIGINT)
    time.sleep(1)
    assert len(run.workers()) == 2
    begin = time.monotonic()
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(BOUND) == 130
    happened(f"exit code 130 after {time.monotonic() - begin:.1f} s")
    wait_for(lambda: not run.left(), seconds=BOUND)


@pytest.mark.fault(
    "a worker is stopped for some seconds (SIGSTOP, SIGCONT)",
    should="a delay; the weights of an undisturbed run, bit for bit",
)
def test_slow(server, whole, tmp_path, size, happened):
    pause = size(2, 8)
    run = server.start(tmp_path, "--num-gpus", 2, **KEYS)
    wait_for((tmp_path / "last_checkpoint").exists)
    os.kill(run.workers()[1], signal.SIGSTOP)
    time.sleep(pause)
    assert not (tmp_path / "model_final.pth").exists()
    os.kill(run.workers()[1], signal.SIGCONT)
    assert run.wait() == 0, run.printed[-3000:]
    ours, theirs = weights(tmp_path), weights(whole)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    happened(f"{pause} s of delay, equal weights")


@pytest.mark.fault(
    "a worker falls silent for good (SIGSTOP) with --dist-timeout 4",
    should="the others end after 4 s, and it is ended by force and named",
)
def test_silent(server, tmp_path, happened):
    run = server.start(tmp_path, "--num-gpus", 2, "--dist-timeout", 4, **LONG)
    wait_for((tmp_path / "last_checkpoint").exists)
    os.kill(run.workers()[0], signal.SIGSTOP)
    begin = time.monotonic()
    assert run.wait(60) == 1
    assert "worker 0 did not answer, and was ended by force" in run.printed
    happened(f"the launcher ended after {time.monotonic() - begin:.0f} s; named")
    wait_for(lambda: not run.left(), seconds=BOUND)


@pytest.mark.fault("kill -9 of the launcher", should="its workers end by themselves")
def test_orphans(server, tmp_path, happened):
    run = server.start(tmp_path, "--num-gpus", 2, **LONG)
    wait_for((tmp_path / "last_checkpoint").exists)
    workers = run.workers()
    os.kill(run.pid, signal.SIGKILL)
    seconds = wait_for(lambda: not any(map(alive, workers)), seconds=BOUND)
    happened(f"none left after {seconds:.1f} s; the checkpoint is of iteration {last(tmp_path)}")
    assert last(tmp_path) >= 2
