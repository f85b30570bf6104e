"""`bn-detect demo`: two studies, real images under two normalization batches and leaky shapes."""

import argparse
import sys
from pathlib import Path

from . import study

# The study, and its folder under --output.
PARTS = {"trees": ("demo_trees.yaml", "trees"), "shapes": ("demo.yaml", "leakage")}


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bn-detect demo",
        description="Train a detector of trees under two normalization batches with two workers, "
        "and show what it finds; then a leakage study of one seed.",
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--only", choices=PARTS, help="one of the two studies")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY VALUE")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the studies one after the other; return the exit code of the first that fails."""
    args = argument_parser().parse_args(arguments)
    more = ["--options", *args.options] if args.options else []
    for name, (file, folder) in PARTS.items():
        if args.only in (None, name):
            words = [f"studies/{file}", "--seeds", "1", "--output", str(args.output / folder)]
            if code := study.main([*words, *more]):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
