"""The check of a large dataset is done once."""

import json
import os

import pytest

from bn_detect.data import DatasetError, check_dataset
from bn_detect.data.checks import check


@pytest.fixture
def counted(dataset, tmp_path, monkeypatch):
    """`dataset` counts as large; returns the calls that looked at its images."""
    calls = []
    look = check.image_faults

    def counting(*args, **kwargs):
        calls.append(kwargs)
        return look(*args, **kwargs)

    monkeypatch.setattr(check, "LARGE", 2)
    monkeypatch.setattr(check, "image_faults", counting)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset.json_file.write_text(json.dumps(dataset.coco))
    return calls


def test_success_on_a_large_dataset_is_remembered(dataset, counted):
    first = check_dataset(dataset.name)
    assert check_dataset(dataset.name) == first
    assert [call["decode"] for call in counted] == [False]

    (dataset.images / "new.png").touch()
    assert check_dataset(dataset.name) == first and len(counted) == 2
    os.utime(dataset.json_file, (1, 1))
    assert check_dataset(dataset.name) == first and len(counted) == 3
    assert check_dataset(dataset.name) == first and len(counted) == 3


def test_failure_is_not_remembered(dataset, counted):
    (dataset.images / "1.png").write_text("")
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"1\.png\) cannot be read"):
            check_dataset(dataset.name)
    assert len(counted) == 2


def test_a_cache_that_cannot_be_written_is_done_without(dataset, counted, tmp_path):
    (tmp_path / "cache").touch()
    check_dataset(dataset.name)
    check_dataset(dataset.name)
    assert len(counted) == 2
