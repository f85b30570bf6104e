"""`bn-detect study`: plan studies, run what is missing, collect and report."""

import argparse
import contextlib
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..configuration.lazy_config import in_two
from ..data import check_uses, register_derived
from ..runtime.checkpoint_file import add_trust_option
from ..runtime.files import read_json
from ..runtime.folder_lock import sole_user
from ..study.datasets import check_dataset_options, prepare_datasets
from ..study.document import write_document
from ..study.execution.only import find_run, run_alone
from ..study.execution.pool import (
    Group,
    check_started_once,
    default_jobs,
    environments,
    run_here,
)
from ..study.execution.slurm import run_on_cluster
from ..study.folders import OR_FORCE, check_folders, forget, prepare_folders
from ..study.plan import Study
from ..study.progress import Progress, plan_table
from ..study.reading import MOST_SEEDS, check_number, read_study
from ..study.report import write_report
from ..study.results import Findings, collect
from ..study.runs import Run, plan_runs
from ..study.settings import check_arm_classes, check_arm_images
from ..study.summary import terminal_tables, verdicts
from .parser import command_parser
from .run import run_command

COLLECT_SECONDS = 20.0  # between two results.json, which hold everything


@dataclasses.dataclass(frozen=True)
class Planned:
    """A study, its folder, and its runs: groups that one job does one after the other."""

    study: Study
    output: Path
    groups: Sequence[Group]

    @property
    def runs(self) -> list[Run]:
        return list(chain.from_iterable(self.groups))


def argument_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = command_parser(
        "study",
        "Train the arms of studies, measure them and report, such as what leaks through their "
        "BatchNorm. Started again, it goes on where it was.",
        [
            "studies/demo.yaml --output out --seeds 3",
            "given.yaml --config-file lazy.py --weights W --options train.device=cpu",
        ],
        usage="FILE ... [options]",
    )
    add = parser.add_argument
    add("studies", nargs="*", metavar="FILE", help="such as configs/studies/demo.yaml")
    add("--study", nargs="+", default=[], metavar="FILE", help="the same")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: output/studies/NAME in the current folder; of several studies each has "
        "DIR/NAME",
    )
    add(
        "--num-gpus",
        type=int,
        metavar="N",
        help="GPUs of a run, or processes on CPU (default: the study's workers); with train: "
        "false, the GPUs that the checkpoint was trained on, while one is used",
    )
    add("--seeds", type=int, metavar="K", help="runs per arm, in place of the study's number")
    add(
        "--jobs",
        type=int,
        metavar="J",
        help="runs at once on this machine (default: on CPU one per core, on GPUs one)",
    )
    add("--launcher", choices=("local", "slurm"), default="local", help="where runs are started")
    add("--weights", metavar="W", help="the checkpoint, for a study with train: false")
    add_trust_option(parser)
    add("--config-file", metavar="C", help="in place of the study's base")
    more = "config keys for all arms, after those of the study"
    add("--options", nargs="+", default=[], metavar="KEY VALUE", help=more)
    add("--document", type=Path, metavar="FILE.md", help="write a document on the studies, too")
    add("--title", default="Studies", help="of the document")
    alone = "do this run alone and write no report; a run without this reports"
    add("--only", metavar="ARM/SEED", help=alone)
    add("--dry-run", action="store_true", help="print what would be done, and how long it takes")
    add("--force", action="store_true", help="delete the runs that are there and begin anew")
    return parser


def configured(file: str, args: argparse.Namespace) -> Study:
    """Return the study, with what the command line says.

    Raises:
        ValueError: a mistake in the file or on the command line.
    """
    study = read_study(file)
    changes = {"base": args.config_file, "seeds": args.seeds, "workers": args.num_gpus}
    study = dataclasses.replace(study, **{k: v for k, v in changes.items() if v is not None})
    if args.options:
        study = _with_options(study, args.options)
    if study.base is None:
        raise ValueError(f"{study.file} has no base: name your config by --config-file")
    if study.train and args.weights:
        raise ValueError(
            f"--weights {args.weights}: {study.file} trains its arms; the weights they start from "
            "are MODEL.WEIGHTS in its base"
        )
    if not study.train and not args.weights:
        raise ValueError(f"{study.file} trains nothing: name the checkpoint by --weights")
    if args.weights and "://" not in args.weights and not Path(args.weights).is_file():
        raise ValueError(f"--weights {args.weights}: no such file")
    return study


def _with_options(study: Study, words: list[str]) -> Study:
    pairs = [part for word in words for part in in_two(word)]
    if len(pairs) % 2:
        raise ValueError(f"--options: {words[-1]!r} is left over; there must be KEY VALUE pairs")
    options = dict(zip(pairs[::2], pairs[1::2], strict=True))
    arms = tuple(dataclasses.replace(a, options=a.options | options) for a in study.arms)
    return dataclasses.replace(study, options=study.options | options, arms=arms)


def check(args: argparse.Namespace) -> list[Planned]:
    """Plan all studies; nothing is written.

    Raises:
        ValueError: a setting that cannot work, or a folder with another study or run.
    """
    check_started_once(args.num_gpus)
    for name, most in (("seeds", MOST_SEEDS), ("jobs", math.inf)):
        if getattr(args, name) is not None:
            check_number(f"--{name}", getattr(args, name), most)
    files = [*args.studies, *args.study]
    if not files:
        raise ValueError("name a study's file, such as configs/studies/demo.yaml")
    if len({Path(file).stem for file in files}) < len(files):
        raise ValueError(f"{' '.join(files)}: the names of the files must differ")
    if args.only and (len(files) > 1 or args.launcher != "local"):
        raise ValueError("--only is one run of one study, here")
    plans = [_planned(file, args, alone=len(files) == 1) for file in files]
    if args.only:
        (planned,) = plans
        run = find_run(args.only, planned.study, planned.groups)
        plans = [dataclasses.replace(planned, groups=[[run]])]
    groups = [group for planned in plans for group in planned.groups]
    args.jobs = args.jobs or (len(groups) if args.launcher == "slurm" else default_jobs(groups))
    args.jobs = min(args.jobs, len(groups))
    if args.launcher == "local" and not args.dry_run:
        environments(groups, args.jobs)
    return plans


def _planned(file: str, args: argparse.Namespace, *, alone: bool) -> Planned:
    study = configured(file, args)
    check_dataset_options(study)
    name = Path(file).stem
    output = args.output or Path("output", "studies", name)
    output = output if alone or not args.output else output / name
    check_output(study, output)
    here = args.launcher == "local" and not args.dry_run
    trust = args.trust_checkpoint
    groups = plan_runs(study, output, weights=args.weights, trust=trust, here=here)
    planned = Planned(study, output, groups)
    if not args.force:
        check_folders(planned.runs, OR_FORCE)
    return planned


def check_output(study: Study, output: Path) -> None:
    """Raise ValueError where a folder holds the results of another study, or something else."""
    path = output / "results.json"
    kept = read_json(path)
    there = kept.get("study") if path.exists() else {"name": study.name}
    if not isinstance(there, dict) or "name" not in there:
        raise ValueError(f"{path} holds no results of a study; use another --output")
    if there["name"] != study.name:
        raise ValueError(
            f"{output} holds the study {there['name']!r}, not {study.name!r}; use another --output"
        )


def work(plans: list[Planned], args: argparse.Namespace, command: str) -> int:
    """Run what is missing and report; return the exit code."""
    if args.dry_run:
        for planned in plans:
            print(plan_table(planned.runs, args.jobs, planned.study.seconds_per_run))
        if args.force:
            print("--force: all of these are deleted first and done anew")
        return 0
    if args.only:  # others may be at other runs of the study
        prepare(plans[0], force=args.force)
        return run_alone(*plans[0].runs)
    with contextlib.ExitStack() as stack:
        for planned in plans:
            stack.enter_context(sole_user(planned.output, "--output"))
        for planned in plans:
            prepare(planned, force=args.force)
        return _run_and_report(plans, args, command)


def prepare(planned: Planned, *, force: bool = False) -> None:
    """Make datasets and folders, before the first run starts.

    Raises:
        ValueError: a dataset that is missing or faulty; or with `force`, a run in progress.
    """
    prepare_datasets(planned.study)
    arms = {run.arm: run for run in planned.runs}.values()
    register_derived(sorted({name for run in arms for name in run.datasets}))
    uses = ((CfgNode(yaml.safe_load(run.settings)), run.datasets) for run in arms)
    summaries = check_uses(uses)
    for run in arms:
        known = {name: summaries[name] for name in run.datasets}
        arm = planned.study.arm(run.arm)
        check_arm_classes(planned.study, arm, known)
        check_arm_images(planned.study, arm, known, run.processes)
    if force:
        forget(planned.runs)
    prepare_folders(planned.runs)


def _run_and_report(plans: list[Planned], args: argparse.Namespace, command: str) -> int:
    run_missing(plans, args, command)
    results = {p.output: collect(p.study, p.runs, p.output, command) for p in plans}
    for planned in plans:
        findings = Findings(results[planned.output])
        print(*filter(None, [terminal_tables(findings), verdicts(findings)]), sep="\n\n")
        report = write_report(results[planned.output], planned.output)
        print(f"\nThe report, to be opened in a browser, is {report}")
    if args.document:
        write_document(args.document, args.title, results)
        print(f"The document is {args.document}")
    failed = [run for planned in plans for run in planned.runs if not run.measured]
    for run in failed:
        print(f"failed: {run.label}, log {run.status().get('log')}", file=sys.stderr)
    return 1 if failed else 0


def run_missing(plans: Sequence[Planned], args: argparse.Namespace, command: str) -> None:
    """Carry out the missing runs; results.json is written as runs end, at most every 20 seconds."""
    groups = [group for planned in plans for group in planned.groups]
    left = [group for group in groups if not all(run.measured for run in group)]
    progress = Progress([run for planned in plans for run in planned.runs])
    collected = time.monotonic()
    for planned in plans:
        collect(planned.study, planned.runs, planned.output, command)

    def watch() -> None:
        nonlocal collected
        before = progress.ended
        if progress.update() != before and time.monotonic() - collected > COLLECT_SECONDS:
            for planned in plans:
                collect(planned.study, planned.runs, planned.output, command)
            collected = time.monotonic()

    with contextlib.closing(progress):
        if left and args.launcher == "slurm":
            run_on_cluster(left, plans[0].output / "slurm", watch)
        elif left:
            run_here(left, args.jobs, watch)


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code, 1 for failed runs."""
    args = argument_parser().parse_args(arguments)
    command = shlex.join(["bn-detect", "study", *arguments])
    return run_command(
        lambda: check(args), lambda plans: work(plans, args, command), go_on=f"to go on: {command}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
