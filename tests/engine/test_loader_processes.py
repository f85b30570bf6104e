"""Processes of loaders are forked whatever Python's default is, and outlive schedulers' signals."""

import multiprocessing
import subprocess

import pytest

from bn_detect.engine import BNTrainer

from ..helpers.in_process import config


@pytest.fixture(autouse=True)
def _forkserver():
    """Python 3.14's default on Linux."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def _kinds() -> set[str]:
    return {type(process).__name__ for process in multiprocessing.active_children()}


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RandomSubsetTrainingSampler"])
@pytest.mark.parametrize("grouped", [True, False])
def test_training_processes_are_forked(datasets, tmp_path, sampler, grouped):
    cfg = config(datasets, tmp_path, DATALOADER__NUM_WORKERS=1)
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.RANDOM_SUBSET_RATIO = sampler, 0.9
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouped
    batches = iter(BNTrainer.build_train_loader(cfg))
    assert len(next(batches)) == 2 and _kinds() == {"ForkProcess"}


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_processes_are_forked(datasets, tmp_path, workers):
    cfg = config(datasets, tmp_path, DATALOADER__NUM_WORKERS=workers)
    batches = iter(BNTrainer.build_test_loader(cfg, "in_process_val"))
    assert next(batches) and _kinds() == ({"ForkProcess"} if workers else set())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_signal_of_a_scheduler_ends_no_process(datasets, tmp_path, name):
    cfg = config(datasets, tmp_path, DATALOADER__NUM_WORKERS=1)
    batches = iter(BNTrainer.build_train_loader(cfg))
    next(batches)
    (process,) = multiprocessing.active_children()
    subprocess.run(["kill", "-s", name[3:], str(process.pid)], check=True)  # not its parent
    for _ in range(6):  # more than were prepared before the signal
        assert len(next(batches)) == 2
    assert process.is_alive()
    del batches
    process.join(20)
    assert process.exitcode == 0
