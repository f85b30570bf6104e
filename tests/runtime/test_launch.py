"""Workers that die."""

import os
import signal
import time

from tests.helpers.fresh_process import python
from tests.helpers.train_net import children_of, end, wait_for

LONG = {"SOLVER__MAX_ITER": 100000, "SOLVER__CHECKPOINT_PERIOD": 5}


def test_a_killed_worker_ends_the_others_with_its_name(train_net, tmp_path):
    process = train_net.start(train_net.arguments(tmp_path, "--num-gpus", 2, **LONG))
    wait_for((tmp_path / "last_checkpoint").exists)
    workers = children_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    begin = time.monotonic()
    printed = end(process)
    assert time.monotonic() - begin < 45
    assert process.returncode == 1
    assert "--resume" in printed and "worker 1 of 2 died (SIGKILL)" in printed, printed[-3000:]
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def test_a_silent_worker_ends_the_others_within_the_timeout(train_net, tmp_path):
    arguments = train_net.arguments(tmp_path, "--num-gpus", 2, "--dist-timeout", 8, **LONG)
    process = train_net.start(arguments)
    wait_for((tmp_path / "last_checkpoint").exists)
    workers = children_of(process.pid)
    os.kill(workers[0], signal.SIGSTOP)
    begin = time.monotonic()
    try:
        # The one left fails after its timeout; the silent one is then ended by force.
        wait_for(lambda: not os.path.exists(f"/proc/{workers[1]}"), seconds=120)
        assert time.monotonic() - begin > 4
    finally:
        os.kill(workers[0], signal.SIGKILL)
    printed = end(process)
    assert process.returncode != 0
    assert "imed out" in printed or "timeout" in printed, printed[-3000:]


def test_workers_that_have_done_their_work_do_not_fail_as_they_leave(tmp_path):
    done = python("-m", "tests.runtime.aborting", str(tmp_path))
    assert done.stdout.count("the work is done") == 2
    assert [path.read_text() for path in tmp_path.iterdir()] == ["at exit", "at exit"]
