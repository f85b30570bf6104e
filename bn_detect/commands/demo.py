"""`bn-detect demo`: two studies, real images under two normalization batches and leaky shapes."""

import argparse
import sys
from pathlib import Path

from . import study
from .parser import command_parser

# The study, and its folder under --output.
PARTS = {"trees": ("demo_trees.yaml", "trees"), "shapes": ("demo.yaml", "leakage")}


def argument_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = command_parser(
        "demo",
        "Train a detector of trees under two normalization batches with two workers, and show "
        "what it finds; then a leakage study of one seed.",
        ["--only shapes", "--output /tmp/demo --options SOLVER.MAX_ITER 100"],
    )
    add = parser.add_argument
    output = Path("output/demo")
    add("--output", type=Path, default=output, metavar="DIR", help="default: %(default)s")
    add("--only", choices=PARTS, help="one of the two studies")
    add("--options", nargs="+", default=[], metavar="KEY VALUE", help="config keys of both")
    return parser


def main(arguments: list[str]) -> int:
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
    sys.exit(main(sys.argv[1:]))
