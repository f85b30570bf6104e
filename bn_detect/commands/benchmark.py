"""`bn-detect benchmark WHAT`: measure, and print a table."""

import argparse
import sys
from pathlib import Path

from ..benchmarks import gpu, head, kernels, layer, overhead, precise_bn, scaling, traffic, train
from ..runtime.files import write_json
from .parser import command_parser
from .run import run_command

# Each has HELP, add_arguments(parser) and run(args) -> (text to print, result for --json).
SUBCOMMANDS = {
    "layer": layer,
    "overhead": overhead,
    "kernels": kernels,
    "head": head,
    "traffic": traffic,
    "scaling": scaling,
    "train": train,
    "precise-bn": precise_bn,
    "gpu": gpu,
}


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code; see `run_command`."""
    examples = ["layer --json layer.json", "precise-bn --help"]
    parser = command_parser("benchmark", "Measure, and print a table.", examples)
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for name, module in SUBCOMMANDS.items():
        command = commands.add_parser(
            name, help=module.HELP, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.set_defaults(run=module.run)
        command.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
        command.add_argument(
            "--output", type=Path, default=Path("output/benchmark"), help="folder for pictures"
        )
        module.add_arguments(command)
    args = parser.parse_args(arguments)

    def measure(_: None) -> None:
        text, result = args.run(args)
        print(text)
        if args.json:
            write_json(args.json, result)

    return run_command(lambda: args.output.mkdir(parents=True, exist_ok=True), measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
