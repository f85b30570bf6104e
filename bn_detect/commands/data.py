"""`bn-detect data`: prepare datasets, and check datasets.

bn-detect data neon-trees
bn-detect data import aquarium --images DIR --annotations train.json val.json --max-side 320
bn-detect data corrupted --dataset neon_trees_val --corruption fog --severity 3
bn-detect data check neon_trees_train coco_2017_val
bn-detect data leak-potential blood_cells_train
"""

import argparse
import sys
from dataclasses import fields

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
from ..runtime.user_modules import import_modules
from .parser import add_import_option, command_parser
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


def potential(args: argparse.Namespace) -> None:
    """Print what the companions of an object tell about its class."""
    from ..data.leak_potential import leak_potential, potential_table  # loads scikit-learn

    import_modules(args.imports)
    register_derived(args.names)
    for name in args.names:
        check_dataset(name)
        print(potential_table(leak_potential(name, seed=args.seed)) + "\n", flush=True)


def check(args: argparse.Namespace) -> None:
    """Print what is in each dataset, and then a line for each that has a fault.

    Raises:
        DatasetError: at least one has a fault.
    """
    import_modules(args.imports)
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
    parser = command_parser(
        "data",
        "Prepare datasets, and check datasets.",
        [line.removeprefix("bn-detect data ") for line in (__doc__ or "").splitlines()[2:]],
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    layout = argparse.ArgumentDefaultsHelpFormatter
    for kind, row in DATASETS.items():
        if row.prepare is not None:
            command = commands.add_parser(
                kind.replace("_", "-"), help=row.help, formatter_class=layout
            )
            command.set_defaults(run=prepare, kind=kind)
            _add_options(command, kind, row)

    command = commands.add_parser(
        "corrupted",
        help="write the images of a registered dataset corrupted to disk; without it they are "
        "corrupted as they are read",
        formatter_class=layout,
    )
    command.set_defaults(run=corrupted)
    add = command.add_argument
    add("--dataset", required=True, metavar="NAME")
    add("--corruption", required=True, choices=CORRUPTIONS)
    add("--severity", type=int, choices=SEVERITIES, default=3)
    add("--force", action="store_true", help="make it anew if it is there")

    command = commands.add_parser("check", help="look for faults in registered datasets")
    command.set_defaults(run=check)
    _add_names(command)

    command = commands.add_parser(
        "leak-potential", help="what the companions of an object tell about its class"
    )
    command.set_defaults(run=potential)
    _add_names(command)
    command.add_argument("--seed", type=int, default=0, help="seed of the folds")
    return parser


def _add_names(command: argparse.ArgumentParser) -> None:
    command.add_argument("names", nargs="+", metavar="NAME")
    add_import_option(command)


def _add_options(command: argparse.ArgumentParser, kind: str, row: Dataset) -> None:
    command.description = row.help
    add = command.add_argument
    add("--root", default=str(default_root()), help="the folder for NAME/")
    if row.by_name:
        add("--name", help=f"of the dataset; by default {kind}")
    else:
        add("name", metavar="NAME", help="of the dataset; NAME_train and NAME_val are registered")
    for option in fields(row.options):
        rule, several = option.metadata, isinstance(option.default, tuple)
        flag = rule["flag"] or f"--{option.name.replace('_', '-')}"
        if isinstance(option.default, bool):
            add(flag, dest=option.name, action="store_true", help=rule["help"])
            continue
        add(
            flag,
            dest=option.name,
            type=str if several else type(option.default),
            nargs="+" if several else None,
            default=argparse.SUPPRESS if rule["required"] else option.default,
            choices=rule["choices"],
            required=rule["required"],
            help=rule["help"],
        )
    add("--force", action="store_true", help="rebuild what was made before")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code; see `run_command`."""
    args = argument_parser().parse_args(arguments)
    return run_command(lambda: args, args.run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
