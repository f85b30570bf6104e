"""`bn-detect data`, on small datasets."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from bn_detect.commands.data import main
from tests.data.small_dataset import small_dataset

SHAPES = "leaky-shapes --images 2 --val-images 1 --classes 3 --correlation 0.5 --name"


def test_a_dataset_is_made_once_by_the_options_of_its_row(tmp_path, capsys):
    words = [*SHAPES.split(), "leaky_cli", "--root", str(tmp_path)]
    for said in ("prepared", "already prepared, nothing to do"):
        assert main(words) == 0
        assert f"{tmp_path}/leaky_cli: {said}" in capsys.readouterr().out
    record = json.loads((tmp_path / "leaky_cli" / "prepared.json").read_text())
    assert record["options"]["classes"] == 3 and record["options"]["correlation"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{SHAPES} a/b", "a/b"),
        ("leaky-shapes --correlation 7 --name leaky_cli", "correlation must be in [0"),
        ("check nothing_like_this", "nothing_like_this"),
        ("check coco_2017_val --import no_such_module", "--import no_such_module: No module named"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(words.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and message in printed


def test_check_says_what_is_in_the_good_ones_and_names_the_bad(tmp_path, capsys):
    coco = small_dataset(tmp_path)
    for name, content in (("cli_good", coco), ("cli_bad", {**coco, "images": "none"})):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(tmp_path / "images"))
    assert main(["check", "cli_good"]) == 0
    assert "cli_good" in capsys.readouterr().out
    assert main(["check", "cli_bad", "cli_good"]) == 2
    out, err = capsys.readouterr()
    assert "cli_good" in out and "cli_bad" in err and err.startswith("error: ")
