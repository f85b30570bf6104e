"""The recipe for a normalization batch in docs/extending.md, followed literally."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.train_net import end

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path) -> str:
    """PYTHONPATH with the file of the recipe."""
    text = (REPOSITORY / "docs/extending.md").read_text()
    section = text.split("## A normalization batch\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (tmp_path / "balanced.py").write_text(code)
    return os.pathsep.join([str(tmp_path), str(REPOSITORY)])


def test_a_command_that_imports_it_trains_with_it(train_net, tmp_path, path):
    flags = ("--num-gpus", 2, "--import", "balanced")
    arguments = train_net.arguments(tmp_path / "run", *flags, batch="balanced")
    process = train_net.start(arguments, environment={"PYTHONPATH": path})
    printed = end(process, seconds=240)
    assert process.returncode == 0, printed[-3000:]
    assert (tmp_path / "run/model_final.pth").is_file() and "batch=balanced" in printed


@pytest.mark.parametrize("where", ["process", "ranks"])
def test_the_batch_of_the_recipe_trains_heads_with_balanced_groups(tmp_path, path, where):
    result = subprocess.run(
        [sys.executable, "-m", "tests.layers.batches.balanced_trial", where],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "balanced"
