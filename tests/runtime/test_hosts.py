"""Workers on two hosts, however they are started, train what they train on one host."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.runtime.hosts import BY_LAUNCHER, BY_TORCHRUN, LOOPBACK, run_hosts, two_namespaces

KEYS = {"SOLVER__MAX_ITER": 2}
WITHIN_A_HOST = KEYS | {"MODEL__ROI_BN__SHUFFLE_GROUPS": 2}


def weights(folder: Path) -> dict:
    return torch.load(folder / "model_final.pth", weights_only=False)["model"]


@pytest.fixture(scope="module")
def one_host(train_net, tmp_path_factory) -> Callable[..., dict]:
    """The weights that so many workers of one host end with."""

    @cache
    def train(workers: int, **keys) -> dict:
        folder = tmp_path_factory.mktemp(f"{workers}-workers")
        train_net.run(train_net.arguments(folder, "--num-gpus", workers, **keys))
        return weights(folder)

    return train


def assert_same(folder: Path, reference: dict) -> None:
    ours = weights(folder)
    assert ours.keys() == reference.keys()
    assert all(torch.equal(value, reference[key]) for key, value in ours.items())


def test_torchrun_on_two_hosts_of_two_workers(train_net, tmp_path, one_host):
    host0 = run_hosts(train_net, BY_TORCHRUN, 2, tmp_path, LOOPBACK, **WITHIN_A_HOST)
    assert_same(host0, one_host(4, **WITHIN_A_HOST))


def test_detectron2s_launcher_on_two_hosts(train_net, tmp_path, one_host):
    host0 = run_hosts(train_net, BY_LAUNCHER, 1, tmp_path, LOOPBACK, **KEYS)
    assert_same(host0, one_host(2, **KEYS))


def test_hosts_that_are_joined_by_a_network_only(train_net, tmp_path, one_host):
    with two_namespaces() as network:
        host0 = run_hosts(train_net, BY_TORCHRUN, 1, tmp_path, network, **KEYS)
    assert_same(host0, one_host(2, **KEYS))
