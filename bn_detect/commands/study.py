"""What `tools/leakage_study.py` does: plan a study, run what is missing, collect and report."""

import argparse
import dataclasses
import importlib
import shlex
import sys
from itertools import chain
from pathlib import Path

from ..data import check_datasets, register_derived
from ..runtime.checkpoint_file import add_trust_option
from ..study.datasets import check_dataset_options, prepare_datasets
from ..study.plan import Study, read_study
from ..study.progress import Progress, plan_table
from ..study.report import write_report
from ..study.results import collect
from ..study.runs import Run, check_folders, forget, plan_runs, prepare_folders
from ..study.scheduler import Group, default_jobs, environments, run_here
from ..study.slurm import run_on_cluster
from ..study.summary import summarize, table, verdicts


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="leakage_study.py",
        description="Train the arms of a study and measure what leaks through their BatchNorm. "
        "Started again, it goes on where it was.",
    )
    add = parser.add_argument
    add("--study", required=True, metavar="FILE", help="such as configs/studies/demo.yaml")
    add("--output", type=Path, metavar="DIR", help="default: output/studies/NAME of the file")
    add(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs of a run, or processes on CPU; of a study with train: false, the GPUs that the "
        "checkpoint was trained on, while one is used",
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
    add("--dry-run", action="store_true", help="print what would be done, and how long it takes")
    add("--force", action="store_true", help="delete the runs that are there and begin anew")
    return parser


def configured(args: argparse.Namespace) -> Study:
    """The study, with what the command line says.

    Raises:
        ValueError: a mistake in the file or on the command line.
    """
    study = read_study(args.study)
    for module in study.imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{study.file}: imports: {module}: {error}") from error
    for name in ("num_gpus", "seeds", "jobs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if args.config_file is not None:
        study = dataclasses.replace(study, base=args.config_file)
    if args.seeds is not None:
        study = dataclasses.replace(study, seeds=args.seeds)
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


def plan(study: Study, args: argparse.Namespace) -> list[Group]:
    """The groups of runs; nothing is written.

    Raises:
        ValueError: a setting that cannot work, or a folder with another run.
    """
    check_dataset_options(study)
    here = args.launcher == "local" and not args.dry_run
    groups = plan_runs(
        study,
        args.output,
        workers=args.num_gpus,
        weights=args.weights,
        trust=args.trust_checkpoint,
        here=here,
    )
    if not args.force:
        check_folders(_runs(groups))
    return groups


def prepare(study: Study, args: argparse.Namespace, groups: list[Group]) -> None:
    """Datasets and folders, before the first run starts.

    Raises:
        ValueError: a dataset that is missing or faulty.
    """
    prepare_datasets(study)
    names = sorted({name for run in _runs(groups) for name in run.datasets})
    register_derived(names)
    check_datasets(names)
    if args.force:
        forget(_runs(groups))
    prepare_folders(_runs(groups))


def run_study(study: Study, args: argparse.Namespace, groups: list[Group], command: str) -> dict:
    """Do what is missing; returns results.json, which is written after each run."""
    runs = _runs(groups)
    left = [group for group in groups if not all(run.measured for run in group)]
    progress = Progress(runs)

    def watch() -> None:
        before = progress.ended
        if progress.update() != before:
            collect(study, runs, args.output, command)

    try:
        if left and args.launcher == "slurm":
            run_on_cluster(left, args.output / "slurm", watch)
        elif left:
            run_here(left, args.jobs, watch)
    finally:
        progress.close()
    return collect(study, runs, args.output, command)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 for failed runs, 2 for what the user got wrong."""
    args = argument_parser().parse_args(arguments)
    args.output = args.output or Path("output", "studies", Path(args.study).stem)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["tools/leakage_study.py", *words])
    try:
        study = configured(args)
        groups = plan(study, args)
        first = groups[0][0]
        args.jobs = args.jobs or (len(groups) if args.launcher == "slurm" else default_jobs(first))
        if args.dry_run:
            print(plan_table(_runs(groups), args.jobs, study.seconds_per_run))
            if args.force:
                print("--force: all of these are deleted first and done anew")
            return 0
        if args.launcher == "local":
            environments(first, args.jobs)
        prepare(study, args, groups)
        results = run_study(study, args, groups, command)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; to go on: {command}", file=sys.stderr)
        return 130
    arms = summarize(results)
    print(table(arms), verdicts(arms), sep="\n\n")
    print(f"\nThe report, to be opened in a browser, is {write_report(results, args.output)}")
    failed = [run for run in _runs(groups) if not run.measured]
    for run in failed:
        print(f"failed: {run.label}, log {run.status().get('log')}", file=sys.stderr)
    return 1 if failed else 0


def _runs(groups: list[Group]) -> list[Run]:
    return list(chain.from_iterable(groups))
