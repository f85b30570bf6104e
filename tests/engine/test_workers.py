"""Workers that die, and every way to start them."""

import os
import signal
import socket
import time

import torch

from tests.engine.conftest import children_of, wait_for

LONG = {"SOLVER__MAX_ITER": 100000, "SOLVER__CHECKPOINT_PERIOD": 5}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node")


def weights(folder) -> dict:
    return torch.load(folder / "model_final.pth", weights_only=False)["model"]


def end(process) -> str:
    try:
        return process.communicate(timeout=60)[0]
    finally:
        process.kill()


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
        wait_for(lambda: not os.path.exists(f"/proc/{workers[1]}"), seconds=40)
        assert time.monotonic() - begin > 4
    finally:
        os.kill(workers[0], signal.SIGKILL)
    printed = end(process)
    assert process.returncode != 0
    assert "imed out" in printed or "timeout" in printed, printed[-3000:]


def test_every_launcher_gives_the_same_weights(train_net, tmp_path):
    """--num-gpus, torchrun on one machine, and torchrun on two machines (both this one)."""
    by_launch, by_torchrun, by_nodes = (tmp_path / name for name in ("a", "b", "c"))
    train_net.run(train_net.arguments(by_launch, "--num-gpus", 2))
    train_net.run(train_net.arguments(by_torchrun), (*TORCHRUN, "2", "--standalone"))

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    nodes = []
    for node in range(2):
        address = ("--master-addr", "127.0.0.1", "--master-port", str(port))
        launcher = (*TORCHRUN, "1", "--nnodes", "2", "--node-rank", str(node), *address)
        nodes.append(train_net.start(train_net.arguments(by_nodes), launcher))
    printed = [end(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed[0][-3000:]

    reference = weights(by_launch)
    for folder in (by_torchrun, by_nodes):
        assert all(torch.equal(value, weights(folder)[key]) for key, value in reference.items())
