"""Everything that needs a GPU, in one command: the tests marked `cuda`, then the benchmarks.

`make gpu` runs it and writes docs/gpu.md with the name of the card. Without a GPU, `--dry-run`
collects the tests and writes the page with its tables empty, so that the command can be tested.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import head, layer, overhead, train

HELP = "all tests and benchmarks that need a GPU; writes a page"
NOT_RUN = "not run"
# Title, module, arguments: what one card, or all cards of a machine, are measured on.
PARTS: tuple[tuple[str, ModuleType, list[str]], ...] = (
    ("The layer against torch's", layer, ["--repetitions", "10"]),
    ("A tiny tensor: the price of launches", overhead, ["--repetitions", "10"]),
    ("A step of the heads", head, ["--repetitions", "5"]),
    ("A whole training step", train, ["--repetitions", "20"]),
)
INTRODUCTION = """# On a GPU

Written by `make gpu`, which runs the tests marked `cuda` and the benchmarks on a machine with one
or more NVIDIA GPUs. Every number is measured on the card named here; "not run" means that nobody
has measured it, and that nothing is claimed. What the kernels become on cards that were not at hand
(registers, spills, bytes to move) is printed by `bn-detect benchmark kernels`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--page", type=Path, default=Path("docs/gpu.md"), help="the page to write")
    add("--dry-run", action="store_true", help="collect the tests and write empty tables")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Test, measure and write the page; return the page and all numbers.

    Raises:
        ValueError: there is no GPU.
    """
    if not (args.dry_run or torch.cuda.is_available()):
        raise ValueError("no GPU is visible to PyTorch; --dry-run goes through the motions")
    start = time.perf_counter()
    tests = _tests(args.dry_run)
    results: dict[str, Any] = {"machine": machine(), "tests": tests}
    sections = [f"Machine: {machine()}\n\nTests: {tests}"]
    for title, module, arguments in PARTS:
        text, numbers = NOT_RUN, None
        if not args.dry_run:
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            text, numbers = module.run(parser.parse_args(arguments))
        results[title] = numbers
        name = module.__name__.rpartition(".")[2]
        command = " ".join(["bn-detect benchmark", name, *arguments])
        sections.append(f"## {title}\n\n`{command}`\n\n{text}")
    if not args.dry_run:
        sections.append(f"It took {(time.perf_counter() - start) / 60:.1f} minutes.")
    page = "\n\n".join([INTRODUCTION.strip(), *sections]) + "\n"
    args.page.write_text(page)
    return page, results


def machine() -> str:
    """Return the names of the cards and of the software, or that there is no card."""
    if not torch.cuda.is_available():
        return NOT_RUN
    number, name = torch.cuda.device_count(), torch.cuda.get_device_name()
    return f"{number} x {name}, CUDA {torch.version.cuda}, PyTorch {torch.__version__}"


def _tests(dry_run: bool) -> str:
    """Run, or collect, the tests marked `cuda`; return the last line that pytest prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *["--collect-only"] * dry_run, "tests/layers", "tests/population"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode and dry_run:
        raise ValueError(f"the tests cannot be collected: {last}\n{done.stdout[-2000:]}")
    return f"{NOT_RUN} ({last})" if dry_run else last
