"""The registry: every row is usable, and what is asked of it wrongly is named."""

import json
from dataclasses import fields

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from bn_detect.commands.main import main
from bn_detect.data import (
    DATASETS,
    Dataset,
    DatasetError,
    check_dataset,
    check_dataset_options,
    register_dataset,
    register_derived,
)
from bn_detect.data.registration import register_boxes
from tests.helpers.fresh_process import python

MISTAKES = [
    ("shapes", {}, ["shapes", "kind: 'shapes'", "leaky_shapes"]),
    ("shapes", {"kind": "leaky_shape"}, ["kind: 'leaky_shape'", "did you mean leaky_shapes?"]),
    ("imagenet", {}, ["kind: 'imagenet'"]),
    ("leaky_shapes", {"corelation": 1}, ["corelation: 1", "did you mean correlation?"]),
    ("leaky_shapes", {"correlation": "1"}, ["correlation must be a number, got '1'"]),
    ("leaky_shapes", {"classes": True}, ["classes must be an integer, got True"]),
    ("blood_cells", {"same_stain": 1}, ["same_stain must be true or false, got 1"]),
    ("leaky_shapes", {"images": 10**400}, ["images must be in [1, 1000000], got 1000"]),
    ("neon_trees", {"edge_boxes": "keep"}, ["edge_boxes must be one of 'ignore', 'drop'", "keep"]),
    ("neon_trees", {"overlap": 256}, ["overlap must be in [0, 255], got 256"]),
    ("digits", {"kind": "leaky_shapes"}, ["'digits'", "another kind"]),
    ("../digits", {"kind": "digits"}, ["'../digits'", "letters, digits, _ and - only"]),
    (7, {"kind": "digits"}, ["name 7"]),
    ("digits", [1], ["[1]", "mapping"]),
    ("mine", {"kind": "import", "images": "x"}, ["annotations must be given"]),
    ("mine", {"kind": "import", "images": "x", "annotations": "y"}, ["annotations must be a list"]),
    ("import", {"images": "x", "annotations": ["y"]}, ["name 'import'"]),
]


@pytest.mark.parametrize(("name", "options", "parts"), MISTAKES)
def test_mistakes_are_named(name, options, parts):
    with pytest.raises(ValueError) as caught:
        check_dataset_options(name, options)
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("kind", [kind for kind, row in DATASETS.items() if row.prepare])
def test_every_row_can_be_asked_for(kind):
    row = DATASETS[kind]
    assert row.help and "{command}" in row.remedy
    assert all(option.metadata["help"] for option in fields(row.options))
    if not any(option.metadata["required"] for option in fields(row.options)):
        json.dumps(row.options().recorded())


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "digits"}', '{"kind": 3, "options": {}}'])
def test_a_spoilt_record_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt/prepared.json").write_text(content)
    with pytest.raises(DatasetError, match=r"spoilt/prepared\.json.*--force"):
        register_derived(["spoilt_train"])


A_FILE = """
from dataclasses import dataclass

from PIL import Image

from bn_detect.data import Options, option
from bn_detect.data.datasets.coco_writer import Sample, write_split
from bn_detect.data.registration import SPLITS


@dataclass(frozen=True)
class GreyOptions(Options):
    images: int = option(2, "images of each split", low=1)
    level: int = option(100, "grey level", low=0, high=255)


def prepare(folder, name, options):
    image = Image.new("RGB", (40, 30), (options.level,) * 3)
    objects = [{"bbox": [5, 5, 10, 10], "category_id": 1}]
    samples = [Sample(image, objects)] * options.images
    return {split: write_split(folder, name, split, ["grey"], samples) for split in SPLITS}
"""


def test_a_new_kind_is_one_file_and_one_row(tmp_path, monkeypatch, capsys):
    """The command line, studies, the check and later processes need nothing else."""
    (tmp_path / "grey_dataset.py").write_text(A_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    import grey_dataset

    row = Dataset(register_boxes, grey_dataset.prepare, grey_dataset.GreyOptions, "grey images")
    monkeypatch.setitem(DATASETS, "grey", row)
    assert main(["data", "grey", "--name", "dark", "--level", "7"]) == 0
    assert "dark_val" in capsys.readouterr().out
    assert main(["data", "grey", "--level", "256"]) == 2
    assert "level must be in [0, 255], got 256" in capsys.readouterr().err
    check_dataset_options("light", {"kind": "grey", "level": 200})
    for split in ("train", "val"):
        DatasetCatalog.remove(f"dark_{split}")
        MetadataCatalog.remove(f"dark_{split}")
    register_derived(["dark_train@1"])
    assert check_dataset("dark_train@1").annotations == 1
    register_dataset("grey")
    with pytest.raises(DatasetError, match="missing; make it with `bn-detect data grey`"):
        check_dataset("grey_val")


NO_DISK = """
import sys, detectron2.data, PIL.Image
root = sys.argv[1]
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(root):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(hook)
import bn_detect
from detectron2.data import MetadataCatalog
assert MetadataCatalog.get("leaky_shapes_val").json_file.startswith(root)
assert not {"matplotlib", "sklearn", "skimage"} & set(sys.modules), "slow imports"
"""


def test_importing_registers_without_reading_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    python("-c", NO_DISK, str(tmp_path))
