"""The files that come with the package are found from any folder, by either name."""

from pathlib import Path

import pytest

from bn_detect.configuration import files

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "configs" / "studies" / "demo.yaml"


@pytest.mark.parametrize("name", ["studies/demo.yaml", "configs/studies/demo.yaml", DEMO])
def test_own_files_are_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.find(name) == DEMO


def test_a_file_that_exists_is_taken_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = Path("studies/demo.yaml")
    mine.parent.mkdir()
    mine.touch()
    assert files.find("studies/demo.yaml") == mine


def test_configs_in_the_package_come_before_those_beside_it(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "bn_detect"
    (package / "configs" / "studies").mkdir(parents=True)
    (package / "configs" / "studies" / "demo.yaml").touch()
    monkeypatch.setattr(files, "_PACKAGE", package)
    assert files.find("studies/demo.yaml") == package / "configs/studies/demo.yaml"


@pytest.mark.parametrize("name", ["studies/demmo.yaml", "configs/studies/demmo.yaml"])
def test_a_name_that_is_not_there_names_the_nearest(name):
    with pytest.raises(ValueError, match=rf"{name}.*did you mean studies/demo\.yaml\?"):
        files.find(name)


@pytest.mark.parametrize("name", ["../README.md", "configs/../README.md", "configs", ""])
def test_nothing_outside_the_folder_is_taken(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no file"):
        files.find(name)
