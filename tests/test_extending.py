"""The recipes of docs/extending.md, followed literally (the batch: tests/layers/batches)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bn_detect.commands.study import main as study

REPOSITORY = Path(__file__).parents[1]


def blocks(section: str, language: str = "python") -> list[str]:
    text = (REPOSITORY / "docs/extending.md").read_text()
    text = text.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run(folder: Path, program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]),
            "DETECTRON2_DATASETS": str(folder / "datasets"),
            "OMP_NUM_THREADS": "1",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


DATASET = """
from bn_detect.data import check_dataset, check_dataset_options, register_derived
from bn_detect.commands.main import main
{row}
assert main(["data", "grey", "--level", "7"]) == 0
assert main(["data", "grey", "--level", "256"]) == 2
check_dataset_options("dark", {{"kind": "grey", "level": 7}})
register_derived(["grey_train@1"])
print(check_dataset("grey_train@1").annotations)
"""


CORRUPTION = """
from detectron2.data import DatasetCatalog
import darker
from bn_detect.commands.main import main
from bn_detect.data import register_derived
from bn_detect.data.mapper import read_image
assert main(["data", "leaky-shapes", "--images", "8"]) == 0
names = ["leaky_shapes_val", "leaky_shapes_val_corrupted_darker_3"]
register_derived(names)
clean, corrupted = (read_image(DatasetCatalog.get(name)[0], "RGB") for name in names)
assert abs(corrupted.mean() / clean.mean() - 0.52) < 0.02
try:
    register_derived(["leaky_shapes_val_corrupted_lighter_3"])
except ValueError as error:
    print(error)
"""


def test_a_corruption(tmp_path):
    (file,) = blocks("A corruption")
    (tmp_path / "darker.py").write_text(file)
    refused = run(tmp_path, CORRUPTION)[-1]
    assert "'lighter'" in refused and "darker" in refused


def test_a_dataset(tmp_path):
    file, row = blocks("A dataset")
    (tmp_path / "grey.py").write_text(file)
    assert run(tmp_path, DATASET.format(row=row))[-1] == "1"


PROBE = """
{row}
import torch
from bn_detect.study.measures.probes import measure_of
from bn_detect.study.measures.registry import MEASURES
from tests.probes import toy
MEASURES["confidence"] = measure_of("confidence", PROBES["confidence"])
images = [toy.image(torch.randn(16, toy.CHANNELS), torch.randint(toy.CLASSES, (toy.OBJECTS,)))
          for _ in range(4)]
report = confidence(toy.detector(), [images], 1)
assert report.rois == 4 * toy.ROIS and 0 <= report.share <= 1
(column,) = MEASURES["confidence"].columns
print(column.value({{"share": 0.25}}))
"""


def test_a_probe(tmp_path):
    file, row = blocks("A probe")
    (tmp_path / "confidence.py").write_text(file)
    assert run(tmp_path, PROBE.format(row=row))[-1] == "0.25"


MEASURE = """
from types import SimpleNamespace
from torch import nn
from bn_detect.study.measures.registry import MEASURES
from bn_detect.study.reading import read_study
study = read_study("study.yaml")
(arm,) = study.arms
measure = MEASURES["weight_norm"]
layer = nn.Linear(1, 1)
nn.init.constant_(layer.weight, 3.0)
nn.init.constant_(layer.bias, 4.0)
(result,) = measure.take(SimpleNamespace(model=layer), {}, {})
print(*study.measures_of(arm), measure.columns[0].value(result))
"""
STUDY = """
name: "Norms"
train: false
imports: ["weight_norm"]
measure: ["weight_norm"]
arms: [{name: "one"}]
"""


def test_a_measure(tmp_path):
    (file,) = blocks("A measure")
    (tmp_path / "weight_norm.py").write_text(file)
    (tmp_path / "study.yaml").write_text(STUDY)
    assert run(tmp_path, MEASURE)[-1] == "weight_norm 5.0"


CARRIED_OUT = f"""
name: "Norms"
base: "{REPOSITORY}/configs/leaky-shapes/faster_rcnn_small.yaml"
imports: ["weight_norm"]
datasets:
  tiny: {{kind: "leaky_shapes", images: 8}}
options:
  DATASETS.TRAIN: ["tiny_train"]
  DATASETS.TEST: ["tiny_val"]
  SOLVER.MAX_ITER: 1
  SOLVER.IMS_PER_BATCH: 2
  MODEL.ROI_BN.VIRTUAL_WORKERS: 1
  TEST.PRECISE_BN.ENABLED: false
  MODEL.DEVICE: "cpu"
measure: ["weight_norm"]
arms: [{{name: "one"}}]
"""
# The measuring process is a fork of one that was started without the user's module.
CARRY_OUT = """
from bn_detect.commands.main import main
if __name__ == "__main__":
    assert main(["study", "study.yaml", "--output", "out"]) == 0
"""


def test_a_measure_in_a_study_that_is_carried_out(tmp_path):
    (file,) = blocks("A measure")
    (tmp_path / "weight_norm.py").write_text(file)
    (tmp_path / "study.yaml").write_text(CARRIED_OUT)
    run(tmp_path, CARRY_OUT)
    header, _, row = (tmp_path / "out/table.md").read_text().strip().splitlines()[-3:]
    at = [cell.strip() for cell in header.split("|")].index("norm of the weights")
    assert float(row.split("|")[at]) > 0


def test_a_study(tmp_path, capsys, monkeypatch):
    (text,) = blocks("A study", "yaml")
    file = tmp_path / "images.yaml"
    file.write_text(text)
    monkeypatch.chdir(tmp_path)
    assert study([str(file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "12 runs" in printed and "two images, silent" in printed


@pytest.mark.parametrize(
    "section", ["A normalization batch", "A dataset", "A probe", "A measure", "A study"]
)
def test_every_recipe_has_its_code(section):
    assert blocks(section) or blocks(section, "yaml")
