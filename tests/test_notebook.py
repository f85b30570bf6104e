"""The notebook runs, its heads do what it says, and its pictures are in the file."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "does_my_head_cheat.ipynb"
CELLS = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_runs_and_one_head_cheats(capsys):
    matplotlib.use("Agg")
    names: dict = {}
    for number, cell in enumerate(CELLS):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    one, shuffled = names["reports"].values()
    assert "reads labels" in one.verdict and "reads labels" not in shuffled.verdict
    assert one.label_leakage.all.low > shuffled.label_leakage.all.high
    accuracy = [names["accuracy"](model, names["unseen"]) for model in names["models"].values()]
    assert accuracy[0] < accuracy[1] - 0.05


def test_holds_its_pictures():
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not any(output["output_type"] == "error" for output in outputs)
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert "one image: the head reads labels" in text
