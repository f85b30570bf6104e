"""The recipe for a normalization batch in docs/extending.md, followed literally."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("where", ["process", "ranks"])
def test_the_batch_of_the_recipe_trains_heads_with_balanced_groups(tmp_path, where):
    text = (REPOSITORY / "docs/extending.md").read_text()
    section = text.split("## A normalization batch\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (tmp_path / "balanced.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
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
