"""Runs that are killed and resumed end as runs that were left alone."""

import os
import signal

import torch

from tests.helpers.fresh_process import python
from tests.helpers.in_process import assert_same_bits
from tests.helpers.train_net import children_of, wait_for

SETTINGS = {
    "SOLVER__MAX_ITER": 10,
    "SOLVER__CHECKPOINT_PERIOD": 3,
    "DATALOADER__NUM_WORKERS": 1,
    "MODEL__ROI_BN__VIRTUAL_WORKERS": 2,
}


REPLACES = "holds checkpoints of another run, which this one replaces; --resume goes on from them"


def final_state(folder) -> dict:
    return torch.load(folder / "model_final.pth", weights_only=False)


def test_killed_run_resumes_to_the_same_bits(train_net, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_net.run(train_net.arguments(whole, "--num-gpus", 2, **SETTINGS))

    process = train_net.start(train_net.arguments(broken, "--num-gpus", 2, **SETTINGS))
    wait_for((broken / "last_checkpoint").exists)
    workers = children_of(process.pid)
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not (broken / "model_final.pth").exists(), "it ended before it was killed"

    printed = train_net.run(train_net.arguments(broken, "--num-gpus", 2, "--resume", **SETTINGS))
    assert "Starting training from iteration 3" in printed or "from iteration 6" in printed
    ours, theirs = final_state(broken), final_state(whole)
    assert ours["iteration"] == theirs["iteration"] == 9
    assert ours["model"].keys() == theirs["model"].keys()
    different = [k for k, v in theirs["model"].items() if not torch.equal(v, ours["model"][k])]
    assert different == []
    moved = [k for k in theirs["model"] if k.endswith("running_mean")]
    assert moved and all(theirs["model"][k].abs().sum() > 0 for k in moved)


def test_random_seed_is_kept_for_the_resumed_run(train_net, tmp_path):
    settings = {"SEED": -1, "SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2}
    train_net.run(train_net.arguments(tmp_path, **settings))
    whole = final_state(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert REPLACES not in train_net.run(train_net.arguments(tmp_path, "--resume", **settings))
    resumed = final_state(tmp_path)
    assert resumed["trainer"]["seed"] == whole["trainer"]["seed"]
    assert_same_bits(resumed["model"], whole["model"])


def test_a_run_without_resume_says_that_it_replaces_another(train_net, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    printed = train_net.run(train_net.arguments(tmp_path, SOLVER__MAX_ITER=1))
    assert f"OUTPUT_DIR {tmp_path} {REPLACES}" in printed


KILL_WHILE_SAVING = """
import os, random, signal, sys, time, torch
from bn_detect.runtime.checkpointer import AtomicCheckpointer
folder, rng = sys.argv[1], random.Random(0)
for kill in range(10):
    child = os.fork()
    if child == 0:
        checkpointer = AtomicCheckpointer(torch.nn.Linear(1000, 1000), folder)
        for i in range(10**6):
            checkpointer.save(f"model_{i % 5}", iteration=i)
    time.sleep(0.05 + rng.random() * 0.3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    named = open(f"{folder}/last_checkpoint").read()
    for name in {named, *(f for f in os.listdir(folder) if f.startswith("model_"))}:
        saved = torch.load(f"{folder}/{name}", weights_only=True)
        assert saved["model"]["weight"].shape == (1000, 1000) and "iteration" in saved, name
print("all whole")
"""


def test_kill_while_a_checkpoint_is_written(tmp_path):
    """kill -9 at random moments; last_checkpoint and whatever it names are whole."""
    assert python("-c", KILL_WHILE_SAVING, str(tmp_path)).stdout == "all whole\n"
