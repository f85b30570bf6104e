"""`bn-detect train`: read a config, check it, start the workers, train or evaluate."""

import argparse
import contextlib
import logging
import re
import sys
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..configuration.check import check_run
from ..configuration.keys import normalization_batch
from ..configuration.lazy_config import OVERRIDE
from ..configuration.model import EVAL_STATS
from ..configuration.reading import read_config
from ..configuration.settings import check_weights
from ..data import register_derived
from ..distributed.neighbours import neighbours
from ..engine.evaluation import evaluate_under, evaluation_table, precise_bn
from ..engine.trainer import BNTrainer
from ..runtime.checkpoint_file import add_trust_option
from ..runtime.checkpointer import AtomicCheckpointer
from ..runtime.files import check_is_folder, write_json, write_text
from ..runtime.folder_lock import sole_user
from ..runtime.launch import expected_world_size, launch, share_cores
from ..runtime.user_modules import import_modules
from .parser import add_import_option, command_parser
from .run import run_command

logger = logging.getLogger(__name__)
CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


def argument_parser() -> argparse.ArgumentParser:
    """Return Detectron2's command line with the options of this package."""
    parser = command_parser(
        "train",
        "Train or evaluate a model.",
        [
            "--config-file FILE.yaml --num-gpus 8 --resume SOLVER.BASE_LR 0.01",
            "--config-file lazy.py --eval-only train.init_checkpoint=model_final.pth",
        ],
        usage="--config-file FILE [options] [KEY VALUE ...]",
        note="A config that ends in .py is a LazyConfig, which is executed: use those you trust.",
    )
    url = default_argument_parser().get_default("dist_url")
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="YAML, or a LazyConfig .py")
    add("--resume", action="store_true", help="go on from the checkpoint in OUTPUT_DIR, if any")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS; train nothing")
    gpus = "GPUs per machine, or processes on a CPU"
    add("--num-gpus", type=int, default=1, metavar="N", help=gpus)
    add("--num-machines", type=int, default=1, metavar="N", help="default: %(default)s")
    add("--machine-rank", type=int, default=0, metavar="N", help="rank of this machine, from 0")
    add("--dist-url", default=url, metavar="tcp://HOST:PORT", help="address of the first machine")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    add(
        "--dist-timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="end with an error when a lost worker has not answered for this long "
        "(default: %(default)s)",
    )
    add(
        "--eval-stats",
        type=lambda kinds: kinds.replace(",", " ").split() or ["nothing"],
        metavar="KIND ...",
        help="with --eval-only: evaluate under each of these statistics and print one table; "
        f"of {', '.join(EVAL_STATS)}",
    )
    add_trust_option(parser)
    add_import_option(parser)
    return parser


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line; the kinds of --eval-stats end where the KEY VALUE pairs begin."""
    if "--eval-stats" in words:
        # Joined, because argparse would take the KEY VALUE pairs for more of it.
        start = end = words.index("--eval-stats") + 1
        while end < len(words) and not (
            words[end].startswith("-") or is_config_key(words[end - 1], words[end])
        ):
            end += 1
        words = [*words[:start], " ".join(words[start:end]), *words[end:]]
    return argument_parser().parse_args(words)


def is_config_key(before: str, word: str) -> bool:
    """Return whether a word of a command line, after `before`, starts the KEY VALUE pairs.

    A LazyConfig's key=value does, too.
    """
    patterns = ((CONFIG_KEY, word), (OVERRIDE, word.partition("=")[0]))
    return any(p.fullmatch(text) for p, text in patterns) and not before.startswith("--")


def check(cfg: CfgNode, args: argparse.Namespace, world_size: int) -> None:
    """Find everything that can be known to fail before the workers start.

    Raises:
        ValueError: an option, a setting or a dataset.
    """
    if args.eval_stats is not None and not args.eval_only:
        kinds = " ".join(args.eval_stats)
        raise ValueError(f"--eval-stats {kinds} needs --eval-only; without it, a run trains")
    if args.num_machines > 1 and "://" not in args.dist_url:
        raise ValueError(f"--dist-url is {args.dist_url!r}; it must be tcp://HOST:PORT")
    check_is_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    check_weights(cfg, resume=args.resume)
    statistics, precise = args.eval_stats or (), cfg.TEST.PRECISE_BN.ENABLED
    reads_training = not args.eval_only or precise or "precise" in statistics
    check_run(
        cfg,
        world_size,
        BNTrainer,
        [*(cfg.DATASETS.TRAIN if reads_training else ()), *cfg.DATASETS.TEST],
        trains=not args.eval_only,
        precise=precise,
        statistics=statistics,
    )


def work(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Do one worker's part.

    One training or evaluation at a time works in an OUTPUT_DIR; a second one is refused, so neither
    loses anything. An evaluation replaces results.json and the detections in inference*/, and
    leaves the checkpoints and the config.yaml of a training as they are.
    """
    import_modules(args.imports)
    if cfg.MODEL.DEVICE == "cpu":
        share_cores()
    in_use = sole_user(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    with in_use if comm.is_main_process() else contextlib.nullcontext():
        set_up(cfg, args)
        register_derived([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        results = evaluate(cfg, args) if args.eval_only else train(cfg, args)
        if comm.is_main_process() and results:
            path = Path(cfg.OUTPUT_DIR, "results.json")
            write_json(path, results)
            logger.info("Results written to %s", path)


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Log to the terminal and OUTPUT_DIR, and seed: as Detectron2's `default_setup`, but with this
    package's messages, and config.yaml is left to `keep_config`."""
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "bn_detect"):
        setup_logger(cfg.OUTPUT_DIR, rank, name=name, enable_propagation=name == "bn_detect")
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Command line: %s\nConfig:\n%s", args, cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def keep_config(cfg: CfgNode, *, replace: bool) -> None:
    """Write OUTPUT_DIR/config.yaml, whole; one that is there stays unless `replace`."""
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    if comm.is_main_process() and (replace or not path.exists()):
        write_text(path, cfg.dump())


def train(cfg: CfgNode, args: argparse.Namespace) -> dict | None:
    """Train, and return the results of the last evaluation, if there was one."""
    # Made here, where the time-out is known; the heads look them up.
    ranks = normalization_batch(cfg).spans(comm.get_world_size())
    if ranks > 1:
        neighbours(ranks, timeout=timedelta(seconds=args.dist_timeout))
    trainer = BNTrainer(cfg, checked=True)
    trainer.checkpointer.trust = args.trust_checkpoint
    if not args.resume and trainer.checkpointer.has_checkpoint() and comm.is_main_process():
        logger.warning(
            "OUTPUT_DIR %s holds checkpoints of another run, which this one replaces; --resume "
            "goes on from them",
            cfg.OUTPUT_DIR,
        )
    trainer.resume_or_load(resume=args.resume)
    keep_config(cfg, replace=True)  # only now: a refused --resume leaves the run as it was
    trainer.train()
    return getattr(trainer, "_last_eval_results", None)


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict:
    """Return the results of the checkpoint, with --eval-stats by kind of statistics."""
    keep_config(cfg, replace=False)  # of a training, if there is one
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


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code; see `run_command`."""
    args = parse_arguments(arguments)

    def checked() -> CfgNode:
        import_modules(args.imports)
        cfg = read_config(args)
        check(cfg, args, expected_world_size(args.num_gpus, args.num_machines, args.machine_rank))
        return cfg

    def start(cfg: CfgNode) -> None:
        launch(
            work,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            timeout=timedelta(seconds=args.dist_timeout),
            args=(cfg, args),
        )

    go_on = "" if args.eval_only else "go on from the last checkpoint with --resume"
    return run_command(checked, start, go_on=go_on)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
