#!/usr/bin/env python
"""The paper's other experiments on digits: `bn-detect study` with six studies."""

import sys
from pathlib import Path

from bn_detect.commands.main import main

STUDIES = Path(__file__).parents[1] / "configs" / "studies"
NAMES = (
    *("rendered_sizes", "rendered_averages"),
    *("digits_sizes", "digits_averages", "digits_same_class", "digits_domains"),
)
TITLE = "Batch size, moving averages, domains and same-class batches, on digits"

if __name__ == "__main__":
    files = [str(STUDIES / f"{name}.yaml") for name in NAMES]
    sys.exit(main(["study", *files, "--title", TITLE, *sys.argv[1:]]))
