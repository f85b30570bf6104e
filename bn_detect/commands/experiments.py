"""What `tools/experiments.py` does: train, measure, report."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..data import prepare_dataset
from ..experiments import averages, domains, same_class, sizes
from ..experiments.document import write_document
from ..experiments.job import Job
from ..experiments.pool import Group, do_all
from ..experiments.report_averages import section_c
from ..experiments.report_domains import section_d
from ..experiments.report_same_class import section_e
from ..experiments.report_sizes import section_a, section_b
from ..experiments.section import Found, Section
from ..runtime.files import write_json


@dataclass(frozen=True)
class Experiment:
    """Its runs for a seed and options, and what is said about them."""

    jobs: Callable[[int, tuple[str, ...]], list[Job]]
    section: Callable[[Found], Section]


EXPERIMENTS = {
    "a": Experiment(lambda *args: [job for job in sizes.jobs(*args) if not job.begins], section_a),
    "b": Experiment(sizes.jobs, section_b),
    "c": Experiment(averages.jobs, section_c),
    "d": Experiment(domains.jobs, section_d),
    "e": Experiment(same_class.jobs, section_e),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = argparse.ArgumentParser(
        description="The paper's experiments on digits: (a) normalization batch size, (b) what "
        "repairs a small one, (c) moving averages against PreciseBN, (d) domain shift, (e) "
        "mini-batches of one class. Goes on where it was ended.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = main_parser.add_argument
    add("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="LETTER")
    add("--seeds", type=int, default=5, help="how many: 1, 2, ...")
    add("--jobs", type=int, default=2, help="runs at once, of one thread each")
    add("--output", type=Path, default=Path("output/experiments"))
    add("--document", type=Path, help="default: OUTPUT/experiments.md")
    add("--options", nargs="+", default=[], metavar="KEY VALUE", help="config keys for every run")
    return main_parser


def grouped(jobs: Sequence[Job]) -> list[Group]:
    """Runs that go on from one another, one after the other; each once, whoever wants it."""
    groups: dict[tuple, list[Job]] = {}
    for job in dict.fromkeys(jobs):
        groups.setdefault((job.experiment, job.begins or job.arm, job.seed), []).append(job)
    return list(groups.values())


def by_arm(jobs: Sequence[Job], found: dict[Job, dict]) -> Found:
    """What the runs of each arm found, seed by seed."""
    arms: Found = {}
    for job in jobs:
        arms.setdefault(job.arm, []).append(found[job])
    return arms


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 for a run that failed, 2 for a mistake."""
    args = parser().parse_args(arguments)
    try:
        if args.seeds < 1 or args.jobs < 1:
            raise ValueError(f"--seeds {args.seeds} --jobs {args.jobs}: each must be at least 1")
        return _run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}\nFinished runs are kept; start it again.", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    prepare_dataset("digits")
    jobs = {
        letter: [
            job
            for seed in range(1, args.seeds + 1)
            for job in EXPERIMENTS[letter].jobs(seed, tuple(args.options))
        ]
        for letter in EXPERIMENTS
        if letter in args.only
    }
    every = [job for of_letter in jobs.values() for job in of_letter]
    found = do_all(grouped(every), args.output, args.jobs)
    write_json(
        args.output / "results.json",
        [{**asdict(job), "found": found[job]} for job in dict.fromkeys(every)],
    )
    sections = {
        letter: EXPERIMENTS[letter].section(by_arm(of_letter, found))
        for letter, of_letter in jobs.items()
    }
    seconds = sum(result["seconds"] for result in found.values())
    options = f" with {' '.join(args.options)}" if args.options else ""
    facts = (
        f"{len(found)} runs{options}, {args.seeds} seeds, {seconds:.0f} CPU-seconds in all "
        f"({os.uname().machine}, one thread a run). Numbers are means over the seeds with "
        'Student\'s 95% interval; differences are paired by seed. "Seen" says that the interval '
        "of the difference lies above 0."
    )
    document = args.document or args.output / "experiments.md"
    write_document(document, sections, facts)
    print("\n\n".join(section.text for section in sections.values()))
    print(f"\nWritten to {document} and {args.output / 'results.json'}")
    return 0
