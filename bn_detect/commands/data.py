"""`bn-detect data`: prepare datasets, and check datasets.

bn-detect data neon-trees
bn-detect data leaky-shapes --name leaky_shapes_zero --correlation 0
bn-detect data corrupted --dataset neon_trees_val --corruption fog --severity 3
bn-detect data check neon_trees_train coco_2017_val
"""

import argparse
import importlib
import sys
from dataclasses import fields
from typing import Any

from ..data import (
    CORRUPTIONS,
    DATASETS,
    Dataset,
    DatasetError,
    check_dataset,
    prepare_dataset,
    register_derived,
    summary_table,
    write_corrupted,
)
from ..data.corrupted import corrupted_name
from ..data.corruptions import SEVERITIES
from ..data.prepared import default_root
from ..data.registration import SPLITS
from .run import run_command


def prepare(args: argparse.Namespace) -> None:
    """Make the dataset of a kind, unless it is there already."""
    row, name = DATASETS[args.kind], args.name or args.kind
    options = row.options(**{f.name: getattr(args, f.name) for f in fields(row.options)})
    made = prepare_dataset(name, options, kind=args.kind, root=args.root, force=args.force)
    print(f"{args.root}/{name}: {'prepared' if made else 'already prepared, nothing to do'}")
    print(summary_table([check_dataset(f"{name}_{split}") for split in SPLITS]))


def corrupted(args: argparse.Namespace) -> None:
    """Write the images of a dataset, corrupted, to disk."""
    register_derived([args.dataset])
    print(summary_table([check_dataset(args.dataset)]))
    made = write_corrupted(args.dataset, args.corruption, args.severity, force=args.force)
    name = corrupted_name(args.dataset, args.corruption, args.severity)
    print(f"{default_root()}/{name}: {'written' if made else 'already there, nothing to do'}")


def check(args: argparse.Namespace) -> None:
    """Print what is in each dataset, and then a line for each that has a fault.

    Raises:
        DatasetError: at least one has a fault.
    """
    for module in args.imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"--import {module}: {error}") from error
    register_derived(args.names)
    summaries, faults = [], []
    for name in args.names:
        try:
            summaries.append(check_dataset(name))
        except DatasetError as error:
            faults.append(error)
    if summaries:
        print(summary_table(summaries))
    for fault in faults[:-1]:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        raise faults[-1]


def argument_parser() -> argparse.ArgumentParser:
    """Return the command line, with a subcommand for each kind of dataset that can be made."""
    parser = argparse.ArgumentParser(
        description="\n".join((__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    layout: Any = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    for kind, row in DATASETS.items():
        if row.prepare is not None:
            command = commands.add_parser(kind.replace("_", "-"), help=row.help, **layout)
            command.set_defaults(run=prepare, kind=kind)
            _add_options(command, kind, row)

    command = commands.add_parser(
        "corrupted",
        help="write the images of a registered dataset corrupted to disk; without it they are "
        "corrupted as they are read",
        **layout,
    )
    command.set_defaults(run=corrupted)
    add = command.add_argument
    add("--dataset", required=True, metavar="NAME")
    add("--corruption", required=True, choices=CORRUPTIONS)
    add("--severity", type=int, choices=SEVERITIES, default=3)
    add("--force", action="store_true", help="make it anew if it is there")

    command = commands.add_parser("check", help="look for faults in registered datasets")
    command.set_defaults(run=check)
    add = command.add_argument
    add("names", nargs="+", metavar="NAME")
    text = "Python module that registers datasets; may be given several times"
    add("--import", dest="imports", action="append", default=[], metavar="MODULE", help=text)
    return parser


def _add_options(command: argparse.ArgumentParser, kind: str, row: Dataset) -> None:
    command.description = row.help
    add = command.add_argument
    add("--root", default=str(default_root()), help="the folder for NAME/")
    add("--name", help=f"of the dataset; by default {kind}")
    for option in fields(row.options):
        rule, several = option.metadata, isinstance(option.default, tuple)
        add(
            rule["flag"] or f"--{option.name.replace('_', '-')}",
            dest=option.name,
            type=str if several else type(option.default),
            nargs="+" if several else None,
            default=option.default,
            choices=rule["choices"],
            help=rule["help"],
        )
    add("--force", action="store_true", help="rebuild what was made before")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code; see `run_command`."""
    args = argument_parser().parse_args(arguments)
    return run_command(lambda: args, args.run)


if __name__ == "__main__":
    sys.exit(main())
