"""The registry: every row is usable, and what is asked of it wrongly is named."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest

from bn_detect.data import DATASETS, DatasetError, check_dataset_options, register_derived

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
    json.dumps(row.options().recorded())


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "digits"}', '{"kind": 3, "options": {}}'])
def test_a_spoilt_record_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt/prepared.json").write_text(content)
    with pytest.raises(DatasetError, match=r"spoilt/prepared\.json.*--force"):
        register_derived(["spoilt_train"])


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


def test_importing_registers_without_reading_the_disk(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NO_DISK, str(tmp_path)],
        env={**__import__("os").environ, "DETECTRON2_DATASETS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
