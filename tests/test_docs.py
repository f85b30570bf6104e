"""The site is built from the pages and the docstrings without a warning, and holds them all."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_site_is_built_without_a_warning(tmp_path):
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "sphinx", "-q", "-W", "-d", tmp_path / "cache"]
        + ["--keep-going", REPOSITORY / "docs", tmp_path / "site"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout
    pages = {str(path.relative_to(tmp_path / "site")) for path in tmp_path.rglob("*.html")}
    sources = (path.relative_to(REPOSITORY / "docs") for path in REPOSITORY.glob("docs/**/*.md"))
    assert {str(path.with_suffix(".html")) for path in sources} <= pages
    api = (tmp_path / "site" / "api" / "population.html").read_text()
    assert "bn_detect.population.update_population_stats" in api
    index = (tmp_path / "site" / "index.html").read_text()
    assert 'href="training.html"' in index and 'href="about/security.html"' in index
    assert "_images/blood_cells_flips.png" in index
