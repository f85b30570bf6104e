#!/usr/bin/env python
"""Prepare datasets, and check datasets.

prepare_data.py neon-trees
prepare_data.py leaky-shapes
prepare_data.py digits
prepare_data.py corrupted --dataset neon_trees_val --corruption fog --severity 3
prepare_data.py check neon_trees_train coco_2017_val
"""

import argparse
import importlib
import sys
from dataclasses import fields

from bn_detect.data import (
    CORRUPTIONS,
    DatasetError,
    LeakyShapesOptions,
    TilingOptions,
    check_dataset,
    prepare_digits,
    prepare_leaky_shapes,
    prepare_neon_trees,
    register_derived,
    summary_table,
    write_corrupted,
)
from bn_detect.data.corrupted import corrupted_name
from bn_detect.data.corruptions import SEVERITIES
from bn_detect.data.datasets.neon_trees import FOLDER, prepared_summaries
from bn_detect.data.prepared import default_root

DIALS = {
    "correlation": "companion cue, 0 to 1: how much the classes of an image's objects agree",
    "own_evidence": "0 to 1: share of objects sure to show their own class's colour",
    "classes": "number of classes",
    "images": "training images",
    "val_images": "validation images",
    "min_objects": "per image",
    "max_objects": "per image",
    "min_side": "of an object, px",
    "max_side": "of an object, px",
    "size": "of an image, px",
    "noise": "of a pixel, grey levels",
    "seed": "of everything",
}


def neon_trees(args: argparse.Namespace) -> int:
    options = TilingOptions(args.tile, args.overlap, args.min_visible, args.edge_boxes)
    made = prepare_neon_trees(args.root, options, wheel=args.wheel, force=args.force)
    print(f"{args.root}/{FOLDER}: {'prepared' if made else 'already prepared, nothing to do'}")
    print(summary_table(prepared_summaries(args.root)))
    return 0


def leaky_shapes(args: argparse.Namespace) -> int:
    options = LeakyShapesOptions(
        **{f.name: getattr(args, f.name) for f in fields(LeakyShapesOptions)}
    )
    made = prepare_leaky_shapes(args.root, options, name=args.name, force=args.force)
    print(f"{args.root}/{args.name}: {'prepared' if made else 'already prepared, nothing to do'}")
    print(summary_table([check_dataset(f"{args.name}_{split}") for split in ("train", "val")]))
    return 0


def digits(args: argparse.Namespace) -> int:
    made = prepare_digits(args.root, force=args.force)
    print(f"{args.root}/digits: {'prepared' if made else 'already prepared, nothing to do'}")
    print(summary_table([check_dataset(f"digits_{split}") for split in ("train", "val")]))
    return 0


def corrupted(args: argparse.Namespace) -> int:
    register_derived([args.dataset])
    print(summary_table([check_dataset(args.dataset)]))
    made = write_corrupted(args.dataset, args.corruption, args.severity, force=args.force)
    name = corrupted_name(args.dataset, args.corruption, args.severity)
    print(f"{default_root()}/{name}: {'written' if made else 'already there, nothing to do'}")
    return 0


def check(args: argparse.Namespace) -> int:
    for module in args.imports:
        importlib.import_module(module)
    register_derived(args.names)
    summaries, errors = [], []
    for name in args.names:
        try:
            summaries.append(check_dataset(name))
        except DatasetError as error:
            errors.append(error)
    if summaries:
        print(summary_table(summaries))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def parser() -> argparse.ArgumentParser:
    defaults = TilingOptions()
    main_parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")

    neon = commands.add_parser(
        "neon-trees",
        help="make neon_trees_train and neon_trees_val from the wheel of deepforest (MIT)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    neon.set_defaults(run=neon_trees)
    add = neon.add_argument
    add("--root", default=str(default_root()), help="the folder that will hold neon_trees/")
    add("--tile", type=int, default=defaults.tile, help="largest side of a tile, px")
    add(
        "--overlap",
        type=int,
        default=defaults.overlap,
        help="what neighbouring training tiles share, px; validation tiles share nothing",
    )
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

    leaky = commands.add_parser(
        "leaky-shapes",
        help="generate leaky_shapes_train and leaky_shapes_val, whose leak can be dialled",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    leaky.set_defaults(run=leaky_shapes)
    add = leaky.add_argument
    add("--root", default=str(default_root()), help="the folder that will hold NAME/")
    add("--name", default="leaky_shapes", help="of the dataset; begins with leaky_shapes")
    for dial in fields(LeakyShapesOptions):
        flag = f"--{dial.name.replace('_', '-')}"
        add(flag, type=type(dial.default), default=dial.default, help=DIALS[dial.name])
    add("--force", action="store_true", help="rebuild what was prepared before")

    handwritten = commands.add_parser(
        "digits",
        help="write scikit-learn's handwritten digits as image files: digits_train, digits_val",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    handwritten.set_defaults(run=digits)
    add = handwritten.add_argument
    add("--root", default=str(default_root()), help="the folder that will hold digits/")
    add("--force", action="store_true", help="write them anew")

    corrupting = commands.add_parser(
        "corrupted",
        help="write the images of a registered dataset corrupted to disk; without it they are "
        "corrupted as they are read",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    corrupting.set_defaults(run=corrupted)
    add = corrupting.add_argument
    add("--dataset", required=True, metavar="NAME")
    add("--corruption", required=True, choices=CORRUPTIONS)
    add("--severity", type=int, choices=SEVERITIES, default=3)
    add("--force", action="store_true", help="make it anew if it is there")

    checking = commands.add_parser("check", help="look for faults in registered datasets")
    checking.set_defaults(run=check)
    checking.add_argument("names", nargs="+", metavar="NAME")
    checking.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module that registers datasets; may be given several times",
    )
    return main_parser


def main() -> int:
    args = parser().parse_args()
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
