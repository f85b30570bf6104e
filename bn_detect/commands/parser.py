"""The command line of every subcommand: its help fits a screen and ends with two examples."""

import argparse
from collections.abc import Sequence
from typing import NoReturn


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **kwargs) -> None:
        super().__init__(prog, max_help_position=26, width=100, **kwargs)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fill the description; keep the lines of the examples."""
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it in one line, as every other mistake of the user."""
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


def command_parser(
    name: str, description: str, examples: Sequence[str], *, usage: str = "", note: str = ""
) -> argparse.ArgumentParser:
    """Return the parser of `bn-detect NAME`.

    Args:
        examples: what stands behind that name in each.
        usage: what stands behind that name in the first line, in place of all options.
        note: a last sentence.
    """
    lines = [f"  bn-detect {name} {example}" for example in examples]
    return _Parser(
        prog=f"bn-detect {name}",
        usage=f"%(prog)s {usage}" if usage else None,
        description=description,
        epilog="\n".join(["examples:", *lines, *(["", note] if note else [])]),
        formatter_class=_Help,
    )


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Let a user name modules that register datasets, heads or normalization batches."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module with datasets, heads or batches of yours; may be given several times",
    )
