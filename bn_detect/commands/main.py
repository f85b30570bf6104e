"""`bn-detect SUBCOMMAND ...`: which module is which subcommand. Each is imported when it is run."""

import contextlib
import difflib
import importlib
import sys
from collections.abc import Iterator

# The subcommand's module in bn_detect.commands, and what it does.
SUBCOMMANDS = {
    "train": ("train", "train or evaluate a model"),
    "study": ("study", "train the arms of a study, measure them, report"),
    "probe": ("probe", "tell whether the head of a checkpoint reads its batch"),
    "precise-bn": ("precise_bn", "give a checkpoint the statistics of a PreciseBN pass"),
    "domain-shift": ("domain_shift", "evaluate under population statistics of other images"),
    "data": ("data", "prepare datasets, and check datasets"),
    "benchmark": ("benchmark", "measure time, memory and traffic"),
    "demo": ("demo", "train on aerial images under two normalization batches"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code; see `bn_detect.commands.run`."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    name, *rest = words
    if name not in SUBCOMMANDS:
        near = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(SUBCOMMANDS)
        print(f"error: {name!r} is no subcommand; there are {known}{hint}", file=sys.stderr)
        return 2
    try:
        with waiting("Loading PyTorch and Detectron2 ..."):  # which takes seconds
            module = importlib.import_module(f"bn_detect.commands.{SUBCOMMANDS[name][0]}")
        return module.main(rest)
    except ImportError as error:
        try:
            import bn_detect.needs_detectron2  # noqa: F401 - it fails if Detectron2 is the cause
        except ImportError as missing:
            print(f"error: bn-detect {name}: {missing}", file=sys.stderr)
            return 2
        raise error
    except KeyboardInterrupt:  # while it is imported
        print("interrupted by SIGINT", file=sys.stderr)
        return 130


@contextlib.contextmanager
def waiting(line: str) -> Iterator[None]:
    """Show a line during the block, where stderr is a terminal."""
    shown = sys.stderr.isatty()
    if shown:
        print(line, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)  # take it away


def usage() -> str:
    """Return the help text: a line for each subcommand."""
    lines = [f"  {name:13} {what}" for name, (_, what) in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "usage: bn-detect SUBCOMMAND [options]",
            "",
            "The normalization batch of BatchNorm in R-CNN heads: train, measure, repair.",
            "",
            *lines,
            "",
            "bn-detect SUBCOMMAND --help tells its options.",
        ]
    )
