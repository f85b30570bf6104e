"""Weights in the safetensors format: the same tensors, read by the checkpointer, or refused."""

import sys

import pytest
import torch
from torch import nn

from bn_detect.runtime.checkpoint_file import read_checkpoint
from bn_detect.runtime.checkpointer import AtomicCheckpointer
from bn_detect.runtime.errors import CheckpointError
from bn_detect.runtime.weights_file import read_weights, write_weights


def model(seed: int) -> nn.Module:
    """A head whose two names share one layer, as heads of feature levels do."""
    torch.manual_seed(seed)
    shared = nn.Conv2d(3, 4, 3)
    return nn.ModuleDict({"a": shared, "b": shared, "norm": nn.BatchNorm2d(4)})


def test_the_checkpointer_reads_what_was_written(tmp_path):
    written, read = model(0), model(1)
    path = tmp_path / "weights.safetensors"
    write_weights(path, {"model": written.state_dict(), "iteration": 3})
    AtomicCheckpointer(read, str(tmp_path), whole=True).load(str(path))
    for name, value in written.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name
        assert torch.equal(read_weights(path)[name], value), name


def test_other_names_hold_all_of_a_checkpoint(tmp_path):
    path = tmp_path / "weights.pth"
    write_weights(path, {"model": model(0).state_dict(), "iteration": 3})
    assert read_checkpoint(path)["iteration"] == 3


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"PK\3\4 a zip of torch.save", None])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    write_weights(path, model(0).state_dict())
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(CheckpointError, match="weights.safetensors is damaged"):
        read_checkpoint(path)


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        write_weights(path, model(0).state_dict())
    assert list(tmp_path.iterdir()) == []
