"""The state of a model in a checkpoint file."""

import pytest
import torch
from torch import nn

from bn_detect.runtime.errors import CheckpointError
from bn_detect.runtime.model_state import ENTRIES, check_fit, load_whole, read_state


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("entry", [None, *ENTRIES])
def test_it_is_found_by_itself_or_as_an_entry(entry, tmp_path):
    state = model().state_dict()
    content = state if entry is None else {entry: state, "iteration": 7}
    torch.save(content, tmp_path / "file.pth")
    whole, found = read_state(tmp_path / "file.pth", trust=False)
    assert whole.keys() == content.keys() and (found is whole) == (entry is None)
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("content", [[1], {"iteration": 7}, {"model": {"a": 1}}, torch.ones(2)])
def test_a_file_without_one_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="file.pth holds no state of a model.*model_state_dict"):
        read_state(tmp_path / "file.pth", trust=False)
    with pytest.raises(ValueError, match="absent.pth: no such file"):
        read_state(tmp_path / "absent.pth", trust=False)


def test_all_of_a_model_is_loaded():
    source, target = model(), model()
    state = source.state_dict() | {"more": torch.ones(1)}
    del state["1.num_batches_tracked"]
    load_whole(target, state, "it does not fit")
    assert torch.equal(target[0].weight, source[0].weight)
    with pytest.raises(CheckpointError, match="^it does not fit: it has also more$"):
        load_whole(target, state, "it does not fit", exact=True)
    del state["0.bias"]
    with pytest.raises(CheckpointError, match="^it does not fit: it lacks 0.bias$"):
        load_whole(target, state, "it does not fit")
    state["0.bias"] = torch.ones(5)
    with pytest.raises(CheckpointError, match=r"^it does not fit: .*0.bias.*\[5\]"):
        load_whole(target, state, "it does not fit")


def test_the_first_three_misfits_are_named():
    with pytest.raises(CheckpointError, match="^x: it lacks a, b, c and others$"):
        check_fit("x", list("abcd"), [])
    check_fit("x", ["a.num_batches_tracked"], [])
