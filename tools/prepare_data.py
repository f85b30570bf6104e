#!/usr/bin/env python
"""Prepare the NEON trees dataset."""

import argparse
import sys

from bn_detect.data import TilingOptions, prepare_neon_trees, summary_table
from bn_detect.data.neon_trees import FOLDER, default_root, prepared_summaries


def neon_trees(args: argparse.Namespace) -> None:
    options = TilingOptions(args.tile, args.overlap, args.min_visible, args.edge_boxes)
    made = prepare_neon_trees(args.root, options, wheel=args.wheel, force=args.force)
    print(f"{args.root}/{FOLDER}: {'prepared' if made else 'already prepared, nothing to do'}")
    print(summary_table(prepared_summaries(args.root)))


def parser() -> argparse.ArgumentParser:
    defaults = TilingOptions()
    main_parser = argparse.ArgumentParser(description=__doc__)
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")
    neon = commands.add_parser(
        "neon-trees",
        help="make neon_trees_train and neon_trees_val from the wheel of deepforest (MIT)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = neon.add_argument
    add("--root", default=str(default_root()), help="the folder that will hold neon_trees/")
    add("--tile", type=int, default=defaults.tile, help="largest side of a tile, px")
    add("--overlap", type=int, default=defaults.overlap, help="of training tiles, px")
    add(
        "--min-visible",
        type=float,
        default=defaults.min_visible,
        help="a box that a tile's edge cuts counts where more than this share of it is seen",
    )
    add(
        "--edge-boxes",
        choices=("ignore", "drop"),
        default=defaults.edge_boxes,
        help="what becomes of a box of which less is seen: kept with iscrowd=1, or left out",
    )
    add("--wheel", help="the wheel of deepforest, if it is not to be downloaded")
    add("--force", action="store_true", help="rebuild what was prepared before")
    neon.set_defaults(run=neon_trees)
    return main_parser


def main() -> int:
    args = parser().parse_args()
    try:
        args.run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
