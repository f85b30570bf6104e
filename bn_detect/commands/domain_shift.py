"""What `tools/domain_shift.py` does."""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from tqdm import tqdm

from ..configuration.validation import validate_config
from ..data import CORRUPTIONS, check_datasets, register_corrupted, register_derived
from ..data.corrupted import corrupted_name
from ..domain_shift.cells import CHECKPOINT, CLEAN, Cell, Results, fingerprint, plan
from ..domain_shift.picture import draw
from ..domain_shift.summary import tables
from ..engine.domain_shift import evaluate_on, with_statistics_of
from ..engine.trainer import BNTrainer
from ..population.bn_layers import select_bn_layers
from ..runtime.checkpoint_file import add_trust_option
from ..runtime.errors import WorkerDied
from ..runtime.launch import expected_world_size, launch, share_cores
from ..runtime.signals import Interrupted
from .precise_bn import load_all, read_state
from .train import is_config_key, read_config

TIMEOUT = timedelta(minutes=30)
DEFAULT_IMAGES = (10, 100, 1000)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Evaluate a checkpoint on corrupted images under population statistics of the "
        "training data, and of unlabelled images of each corruption. What was measured before "
        "under the same --output is not measured again.",
        usage="%(prog)s --config-file FILE --weights FILE.pth [options] [KEY VALUE ...]",
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", required=True, type=Path, metavar="FILE.pth")
    add(
        "--corruptions",
        nargs="+",
        default=["contrast", "gaussian_noise", "jpeg_compression"],
        metavar="TYPE",
        help=f"of {', '.join(CORRUPTIONS)} (default: %(default)s)",
    )
    add("--severity", type=int, default=3, metavar="1-5")
    add(
        "--num-images",
        nargs="+",
        type=int,
        metavar="N",
        help="images for the statistics (default: "
        f"{' '.join(map(str, DEFAULT_IMAGES))}, as far as there are so many)",
    )
    add(
        "--images-of",
        metavar="DATASET",
        help="whose images, corrupted or not, those are; their labels are not used (default: the "
        "evaluated dataset, DATASETS.TEST)",
    )
    add("--output", type=Path, metavar="FOLDER", help="default: OUTPUT_DIR/domain_shift")
    add("--num-gpus", type=int, default=1, metavar="N", help="workers: GPUs, or processes on CPU")
    add_trust_option(parser)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """`sys.argv`, or `arguments`; KEY VALUE pairs begin at the first word that looks like a key."""
    words = sys.argv[1:] if arguments is None else arguments
    pairs = zip(["", *words], words, strict=False)  # of a word and the next
    keys = (i for i, (before, word) in enumerate(pairs) if is_config_key(before, word))
    begin = next(keys, len(words))
    args = argument_parser().parse_args(words[:begin])
    args.opts = words[begin:]
    return args


def check(cfg: CfgNode, args: argparse.Namespace, world_size: int) -> None:
    """Everything that can be known to fail before the workers start; completes `args`.

    Raises:
        ValueError: a setting, a corruption, the dataset, the checkpoint, or a model without BN.
    """
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"DATASETS.TEST is {cfg.DATASETS.TEST}; one dataset is needed")
    args.images_of = args.images_of or cfg.DATASETS.TEST[0]
    if cfg.MODEL.ROI_BN.TEST_STATS != "population":
        raise ValueError(
            f"MODEL.ROI_BN.TEST_STATS is {cfg.MODEL.ROI_BN.TEST_STATS!r}, which uses no population "
            "statistics; use 'population'"
        )
    validate_config(BNTrainer.auto_scale_workers(cfg, world_size), world_size)
    _register(cfg, args)
    check_datasets([args.images_of, *cfg.DATASETS.TEST])
    available = len(DatasetCatalog.get(args.images_of))
    workers = world_size * cfg.MODEL.ROI_BN.VIRTUAL_WORKERS
    numbers = args.num_images or [min(max(n, workers), available) for n in DEFAULT_IMAGES]
    for number in numbers:
        if not workers <= number <= available:
            raise ValueError(
                f"--num-images {number}: it must be at least {workers}, the number of workers, and "
                f"at most the {available} images of {args.images_of!r}"
            )
    args.num_images = sorted(set(numbers))
    if not args.weights.is_file():
        raise ValueError(f"--weights {args.weights}: no such file")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = BNTrainer.build_model(cfg)
    select_bn_layers(model, cfg.TEST.PRECISE_BN.MODULES or None)
    load_all(model, read_state(args.weights, args.trust_checkpoint)[1], args.weights)
    args.output = args.output or Path(cfg.OUTPUT_DIR, "domain_shift")
    open_results(cfg, args)


def open_results(cfg: CfgNode, args: argparse.Namespace) -> Results:
    """What was measured before under these settings.

    Raises:
        ValueError: the folder holds results of others.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.MODEL.DEVICE = ""
    cfg.DATALOADER.NUM_WORKERS = 0
    settings = {
        "config": fingerprint(cfg.dump().encode()),
        "weights": fingerprint(args.weights.read_bytes()),
        "data": cfg.DATASETS.TEST[0],
        "data_of_statistics": args.images_of,
        "severity": args.severity,
    }
    return Results(args.output / "domain_shift.json", settings)


def work(args: argparse.Namespace) -> None:
    """One worker's part."""
    cfg = BNTrainer.auto_scale_workers(read_config(args), comm.get_world_size())
    if cfg.MODEL.DEVICE == "cpu":
        share_cores()
    _register(cfg, args)
    model = BNTrainer.build_model(cfg)
    load_all(model, read_state(args.weights, args.trust_checkpoint)[1], args.weights)
    results = open_results(read_config(args), args)
    comm.synchronize()  # all have read what there is before anything is added
    missing = [c for c in plan(args.corruptions, args.num_images) if c.place not in results.cells]
    progress = tqdm(total=len(missing), unit="cell", disable=not comm.is_main_process())
    with progress:
        for cell in measure(cfg, model, missing, args):
            if comm.is_main_process():
                results.add(cell)
            progress.update()
    if comm.is_main_process():
        report(results, args)


def measure(cfg: CfgNode, model, missing: list[Cell], args: argparse.Namespace) -> Iterable[Cell]:
    """The missing cells with their metrics, one after the other; a collective."""
    for (statistics, images), cells in groupby(missing, lambda c: (c.statistics, c.images)):
        with contextlib.ExitStack() as stack:
            if statistics != CHECKPOINT:
                name = _name(args.images_of, statistics, args.severity)
                stack.enter_context(with_statistics_of(cfg, model, name, images))
            for cell in cells:
                name = _name(cfg.DATASETS.TEST[0], cell.data, args.severity)
                with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                    metrics = evaluate_on(cfg, model, name, args.output / "inference")
                yield replace(cell, metrics=metrics)


def report(results: Results, args: argparse.Namespace) -> None:
    """Print the table, and write it and the picture beside the numbers."""
    text = tables(results.cells, args.corruptions, args.num_images)
    (args.output / "domain_shift.md").write_text(text + "\n")
    picture = args.output / "domain_shift.png"
    draw(results.cells, args.corruptions, args.num_images, picture)
    print(f"{text}\n\nWritten to {args.output}")


def _register(cfg: CfgNode, args: argparse.Namespace) -> None:
    for name in (args.images_of, cfg.DATASETS.TEST[0]):
        register_derived([name])
        for corruption in args.corruptions:
            register_corrupted(name, corruption, args.severity)


def _name(dataset: str, domain: str, severity: int) -> str:
    return dataset if domain == CLEAN else corrupted_name(dataset, domain, severity)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 for a lost worker, 2 for what the user got wrong."""
    args = parse_arguments(arguments)
    try:
        check(read_config(args), args, expected_world_size(args.num_gpus, 1))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        launch(work, args.num_gpus, timeout=TIMEOUT, args=(args,))
    except WorkerDied as error:
        print(error.traceback, file=sys.stderr)
        print(f"error: {error}; the same command goes on from there", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f"interrupted by {interrupted.name}; the same command goes on from there")
        return interrupted.code
    return 0
