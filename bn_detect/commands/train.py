"""What `tools/train_net.py` does: read a config, check it, start the workers, train or evaluate."""

import argparse
import logging
import re
import sys
from datetime import timedelta
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..configuration.classifier import check_classes
from ..configuration.keys import normalization_batch
from ..configuration.reading import read_config
from ..configuration.validation import check_weights, validate_config
from ..configuration.values import check_num_classes
from ..data import check_datasets, register_derived
from ..distributed.neighbours import neighbours
from ..engine.evaluation import (
    EVAL_STATS,
    check_eval_stats,
    evaluate_under,
    evaluation_table,
    precise_bn,
)
from ..engine.trainer import BNTrainer
from ..engine.trial import check_bn_layers, check_builds
from ..runtime.checkpoint_file import add_trust_option
from ..runtime.checkpointer import AtomicCheckpointer
from ..runtime.errors import WorkerDied
from ..runtime.files import write_json
from ..runtime.launch import FILE_ERRORS, expected_world_size, launch, share_cores
from ..runtime.signals import Interrupted

CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command line and `--dist-timeout`."""
    parser = default_argument_parser()
    parser.add_argument(
        "--dist-timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="end with an error when a lost worker has not answered for this long "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--eval-stats",
        type=lambda kinds: kinds.replace(",", " ").split() or ["nothing"],
        metavar="KIND ...",
        help="with --eval-only: evaluate under each of these statistics and print one table; "
        f"of {', '.join(EVAL_STATS)}",
    )
    add_trust_option(parser)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """`sys.argv`, or `arguments`, by `argument_parser`."""
    words = sys.argv[1:] if arguments is None else arguments
    if "--eval-stats" in words:
        # Joined, for argparse would take the KEY VALUE pairs for more of it.
        begin = end = words.index("--eval-stats") + 1
        while end < len(words) and not (
            words[end].startswith("-") or is_config_key(words[end - 1], words[end])
        ):
            end += 1
        words = [*words[:begin], " ".join(words[begin:end]), *words[end:]]
    return argument_parser().parse_args(words)


def is_config_key(before: str, word: str) -> bool:
    """Whether a word of a command line, after `before`, begins the KEY VALUE pairs."""
    return CONFIG_KEY.fullmatch(word) is not None and not before.startswith("--")


def check(cfg: CfgNode, args: argparse.Namespace, world_size: int) -> None:
    """Everything that can be known to fail before the workers start.

    Raises:
        ValueError: an option, a setting or a dataset.
    """
    if args.eval_stats is not None and not args.eval_only:
        kinds = " ".join(args.eval_stats)
        raise ValueError(f"--eval-stats {kinds} needs --eval-only; without it, a run trains")
    precise = cfg.TEST.PRECISE_BN.ENABLED or "precise" in (args.eval_stats or ())
    trains = not args.eval_only or precise
    validate_config(BNTrainer.auto_scale_workers(cfg, world_size), world_size, trains=trains)
    check_weights(cfg, resume=args.resume)
    model = check_builds(cfg)
    check_eval_stats(args.eval_stats, model)
    check_bn_layers(cfg, model, trains=not args.eval_only, precise=precise)
    names = [*(cfg.DATASETS.TRAIN if trains else ()), *cfg.DATASETS.TEST]
    register_derived(names)
    check_num_classes(cfg, check_datasets(names, cfg))
    check_classes(cfg)


def work(args: argparse.Namespace) -> None:
    """One worker's part."""
    cfg = read_config(args)
    if cfg.MODEL.DEVICE == "cpu":
        share_cores()
    default_setup(cfg, args)
    if not args.eval_only:  # here, where the time-out is known; the heads look them up
        ranks = normalization_batch(cfg).spans(comm.get_world_size())
        if ranks > 1:
            neighbours(ranks, timeout=timedelta(seconds=args.dist_timeout))
    register_derived([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    if args.eval_only:
        results = evaluate(cfg, args)
    else:
        trainer = BNTrainer(cfg)
        trainer.checkpointer.trust = args.trust_checkpoint
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        results = getattr(trainer, "_last_eval_results", None)
    if comm.is_main_process() and results:
        path = Path(cfg.OUTPUT_DIR, "results.json")
        write_json(path, results)
        logging.getLogger(__name__).info("Results written to %s", path)


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict:
    """`--eval-only`: the results of the checkpoint; with --eval-stats by kind of statistics."""
    model = BNTrainer.build_model(cfg)
    trust = args.trust_checkpoint
    checkpointer = AtomicCheckpointer(model, save_dir=cfg.OUTPUT_DIR, trust=trust)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    if args.eval_stats:
        results = evaluate_under(cfg, model, args.eval_stats)
        if comm.is_main_process():
            print(evaluation_table(results))
        return results
    if cfg.TEST.PRECISE_BN.ENABLED:
        precise_bn(cfg, model)
    results = BNTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 for a lost worker, 2 for what the user got wrong,
    128 + the signal (130, 143) for a run that Ctrl-C or SIGTERM ended with a checkpoint."""
    args = parse_arguments(arguments)
    try:
        cfg = read_config(args)
        world_size = expected_world_size(args.num_gpus, args.num_machines)
        check(cfg, args, world_size)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        launch(
            work,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url if args.num_machines > 1 else "auto",
            timeout=timedelta(seconds=args.dist_timeout),
            args=(args,),
        )
    except WorkerDied as error:
        print(error.traceback, file=sys.stderr)
        print(f"error: {error}; go on from the last checkpoint with --resume", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        advice = "go on from the last checkpoint with --resume"
        print(f"interrupted by {interrupted.name}; {advice}", file=sys.stderr)
        return interrupted.code
    except FILE_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
