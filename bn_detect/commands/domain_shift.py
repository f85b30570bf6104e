"""`bn-detect domain-shift`: a study of one checkpoint on corrupted images, made by options."""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog

from ..configuration.lazy_config import in_two
from ..configuration.reading import read_config
from ..data import CORRUPTIONS, check_datasets, register_derived
from ..data.checks.check import check_registered
from ..runtime.checkpoint_file import add_trust_option
from ..runtime.errors import RunFailed
from ..runtime.files import write_text
from ..runtime.folder_lock import sole_user
from ..runtime.user_modules import import_modules
from ..study.execution.pool import check_started_once
from ..study.folders import check_folders
from ..study.measures.domain_shift import check_images
from ..study.measures.domain_table import tables
from ..study.plan import Arm, Study
from ..study.report import write_report
from ..study.results import Findings, collect
from ..study.runs import plan_runs
from .parser import add_import_option, command_parser
from .run import run_command
from .study import Planned, check_output, prepare, run_missing
from .train import is_config_key

DEFAULT_CORRUPTIONS = ["contrast", "gaussian_noise", "jpeg_compression"]
DEFAULT_IMAGES = (10, 100, 1000)
ARM = "the checkpoint"


def argument_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    of = "--config-file FILE --weights FILE.pth"
    parser = command_parser(
        "domain-shift",
        "Evaluate a checkpoint on corrupted images under population statistics of the training "
        "data, and of unlabelled images of each corruption. What was measured before under the "
        "same --output is not measured again.",
        [f"{of} --corruptions fog --severity 5", f"{of} --num-images 10 1000 SEED 1"],
        usage=f"{of} [options] [KEY VALUE ...]",
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", required=True, metavar="FILE.pth")
    add(
        "--corruptions",
        nargs="+",
        default=DEFAULT_CORRUPTIONS,
        metavar="TYPE",
        help=f"of {', '.join(CORRUPTIONS)} (default: {' '.join(DEFAULT_CORRUPTIONS)})",
    )
    add("--severity", type=int, default=3, metavar="1-5", help="of all of them (default: 3)")
    add(
        "--num-images",
        nargs="+",
        type=int,
        metavar="N",
        help="images for the statistics (default: "
        f"{' '.join(map(str, DEFAULT_IMAGES))}, at most half of what there is)",
    )
    add(
        "--images-of",
        metavar="DATASET",
        help="whose images, corrupted or not, those are; their labels are not used (default: "
        "of the evaluated dataset, DATASETS.TEST, which is then evaluated without them)",
    )
    add("--output", type=Path, metavar="FOLDER", help="default: OUTPUT_DIR/domain_shift")
    add("--num-gpus", type=int, default=1, metavar="N", help="workers: GPUs, or processes on CPU")
    add_trust_option(parser)
    add_import_option(parser)
    return parser


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments; KEY VALUE pairs start at the first word like a key."""
    pairs = zip(["", *arguments], arguments, strict=False)  # of a word and the next
    keys = (i for i, (before, word) in enumerate(pairs) if is_config_key(before, word))
    start = next(keys, len(arguments))
    args = argument_parser().parse_args(arguments[:start])
    args.opts = [part for word in arguments[start:] for part in in_two(word)]
    return args


def check(args: argparse.Namespace) -> Planned:
    """Find everything that can be known to fail before the workers start; write nothing.

    Raises:
        ValueError: a setting, a corruption, the dataset, the checkpoint, a model without BN, or a
            folder with results of another study, another checkpoint or other settings.
    """
    check_started_once(args.num_gpus)
    import_modules(args.imports)
    cfg = read_config(args)
    if not Path(args.weights).is_file():
        raise ValueError(f"--weights {args.weights}: no such file")
    if args.images_of:  # before a model is built
        try:
            register_derived([args.images_of])
            check_registered(args.images_of)
        except ValueError as error:
            raise ValueError(f"--images-of {args.images_of}: {error}") from error
    options = {
        "corruptions": list(dict.fromkeys(args.corruptions)),
        "severities": [args.severity],
        "num_images": args.num_images or [1],
        "images_of": args.images_of,
    }
    study = _study(args, options)
    output = args.output or Path(cfg.OUTPUT_DIR, "domain_shift")
    check_output(study, output)

    def groups(study: Study) -> list:
        trust = args.trust_checkpoint
        return plan_runs(study, output, weights=args.weights, trust=trust, processes=args.num_gpus)

    groups(study)  # checks settings, model and checkpoint before the dataset is read
    dataset = args.images_of or cfg.DATASETS.TEST[0]
    register_derived([dataset, *cfg.DATASETS.TEST])
    check_datasets([dataset, *cfg.DATASETS.TEST], cfg)
    workers = args.num_gpus * cfg.MODEL.ROI_BN.VIRTUAL_WORKERS
    options["num_images"] = args.num_images or _default_images(dataset, workers)
    check_images(cfg, options, {}, args.num_gpus)
    study = _study(args, options)
    planned = Planned(study, output, groups(study))
    check_folders(planned.runs)
    return planned


def _study(args: argparse.Namespace, options: dict) -> Study:
    # A PreciseBN pass when the checkpoint is loaded would replace the statistics it holds.
    keys = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    return Study(
        file="domain-shift",
        name="Domain shift",
        question="How far do population statistics of the target images repair a domain shift?",
        base=args.config_file,
        options={**keys, "TEST.PRECISE_BN.ENABLED": False},
        workers=args.num_gpus,
        arms=(Arm(ARM),),
        measure={"domain_shift": options},
        train=False,
        imports=tuple(args.imports),
    )


def _default_images(dataset: str, workers: int) -> list[int]:
    available = len(DatasetCatalog.get(dataset))
    numbers = [min(max(n, workers), available // 2) // workers * workers for n in DEFAULT_IMAGES]
    return sorted(set(numbers) - {0}) or [workers]


def work(planned: Planned, args: argparse.Namespace, command: str) -> None:
    """Measure what is missing; print the table, and write it and the picture beside the numbers."""
    output = planned.output
    with sole_user(output, "--output"):
        prepare(planned)
        args.jobs, args.launcher = 1, "local"
        run_missing([planned], args, command)
        results = collect(planned.study, planned.runs, output, command)
    (run,) = planned.runs
    if not run.measured:
        raise RunFailed(str(run.status().get("error")))
    text = tables(Findings(results).by_arm("domain_shift"))
    write_text(output / "domain_shift.md", f"{text}\n")
    write_report(results, output)
    shutil.copy(output / "figures" / "domain_shift.png", output / "domain_shift.png")
    print(f"{text}\n\nWritten to {output}")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code; see `run_command`."""
    args = parse_arguments(arguments)
    command = shlex.join(["bn-detect", "domain-shift", *arguments])
    go_on = "the same command goes on from there"
    return run_command(lambda: check(args), lambda plan: work(plan, args, command), go_on=go_on)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
