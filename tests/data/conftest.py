"""The real wheel and the dataset made from it, once per session; a small dataset per test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from bn_detect.data import prepare_dataset
from bn_detect.data.datasets.sources.deepforest_wheel import WHEEL
from bn_detect.data.datasets.sources.wheels import fetch_wheel
from tests.data.small_dataset import Dataset


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Datasets that a test registers under new names are forgotten after it."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_wheel(WHEEL.requirement, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A root with neon_trees/ of the default options; not to be changed."""
    root = tmp_path_factory.mktemp("datasets")
    assert prepare_dataset("neon_trees", {"source": str(wheel)}, root=root)
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)
