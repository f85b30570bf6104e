#!/usr/bin/env python
"""Prepare datasets, and check datasets.

prepare_data.py neon-trees
prepare_data.py leaky-shapes --name leaky_shapes_zero --correlation 0
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
    DATASETS,
    DatasetError,
    check_dataset,
    prepare_dataset,
    register_derived,
    summary_table,
    write_corrupted,
)
from bn_detect.data.corrupted import corrupted_name
from bn_detect.data.corruptions import SEVERITIES
from bn_detect.data.prepared import default_root
from bn_detect.data.registration import SPLITS


def prepare(args: argparse.Namespace) -> int:
    row = DATASETS[args.kind]
    name = args.name or args.kind
    options = row.options(**{f.name: getattr(args, f.name) for f in fields(row.options)})
    made = prepare_dataset(name, options, kind=args.kind, root=args.root, force=args.force)
    print(f"{args.root}/{name}: {'prepared' if made else 'already prepared, nothing to do'}")
    print(summary_table([check_dataset(f"{name}_{split}") for split in SPLITS]))
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
    summaries, failures = [], []
    for name in args.names:
        try:
            summaries.append(check_dataset(name))
        except DatasetError as error:
            failures.append(error)
    if summaries:
        print(summary_table(summaries))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")
    for kind, row in DATASETS.items():
        if row.prepare is None:
            continue
        command = commands.add_parser(
            kind.replace("_", "-"),
            help=row.help,
            description=row.help,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run=prepare, kind=kind)
        command.add_argument("--root", default=str(default_root()), help="the folder for NAME/")
        command.add_argument("--name", help=f"of the dataset; by default {kind}")
        for option in fields(row.options):
            rule = option.metadata
            flag = rule["flag"] or f"--{option.name.replace('_', '-')}"
            several = isinstance(option.default, tuple)
            if isinstance(option.default, bool):
                command.add_argument(flag, dest=option.name, action="store_true", help=rule["help"])
                continue
            command.add_argument(
                flag,
                dest=option.name,
                type=str if several else type(option.default),
                nargs="+" if several else None,
                default=option.default,
                choices=rule["choices"],
                help=rule["help"],
            )
        command.add_argument("--force", action="store_true", help="rebuild what was made before")

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
