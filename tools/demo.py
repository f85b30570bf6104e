#!/usr/bin/env python
"""Train on NEON trees under two normalization batches with two CPU workers; compare them."""

import argparse
import sys
from pathlib import Path

from bn_detect.study.demo import ARMS, run_demo

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    args = parser.parse_args()
    try:
        table = run_demo(args.output, tuple(args.arms))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"\n{table}\n\nThe table is in {args.output / 'table.md'}.")
