"""`bn-detect precise-bn`: give a checkpoint file the statistics of a PreciseBN pass."""

import argparse
import contextlib
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import nn

from ..configuration.check import check_run
from ..configuration.reading import read_config
from ..data import register_derived
from ..engine.evaluation import evaluate_under, evaluation_table, precise_bn
from ..engine.trainer import BNTrainer
from ..layers import fill_levels
from ..population.bn_layers import select_bn_layers
from ..population.precise_bn import ROI_SOURCES
from ..runtime.checkpoint_file import add_trust_option
from ..runtime.files import check_writable
from ..runtime.folder_lock import sole_user
from ..runtime.launch import expected_world_size, launch, share_cores
from ..runtime.model_state import load_whole, read_state
from ..runtime.user_modules import import_modules
from ..runtime.weights_file import write_weights
from .parser import add_import_option, command_parser
from .run import run_command

TIMEOUT = timedelta(minutes=30)


def argument_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = command_parser(
        "precise-bn",
        "Rewrite a checkpoint with PreciseBN statistics; all else in it is kept.",
        [
            "--config-file FILE.yaml --weights IN.pth --output OUT.pth --num-iter 500",
            "--config-file lazy.py --weights IN.pth --in-place train.device=cpu",
        ],
        usage="--config-file FILE --weights IN.pth (--output OUT.pth | --in-place)\n"
        "                            [options] [KEY VALUE ...]",
        note="A config that ends in .py is a LazyConfig, which is executed: use those you trust.",
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", required=True, type=Path, metavar="IN.pth", help="the checkpoint to read")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--output",
        type=Path,
        metavar="OUT.pth",
        help="the file to write; OUT.safetensors: weights only",
    )
    where.add_argument("--in-place", action="store_true", help="write over --weights")
    add("--overwrite", action="store_true", help="--output may exist")
    add("--num-iter", type=int, metavar="N", help="batches per worker (TEST.PRECISE_BN.NUM_ITER)")
    add("--roi-source", choices=ROI_SOURCES, help="TEST.PRECISE_BN.ROI_SOURCE")
    add(
        "--modules",
        type=lambda text: text.split(","),
        metavar="NAME,...",
        help="dotted prefixes of the modules to update (TEST.PRECISE_BN.MODULES)",
    )
    add(
        "--per-level",
        action="store_true",
        help="write statistics of each feature level, of a head trained with shared ones "
        "(MODEL.LEVEL_BN.POPULATION level, with which the output is then used)",
    )
    add("--evaluate", action="store_true", help="on DATASETS.TEST, before and after")
    add("--num-gpus", type=int, default=1, metavar="N", help="workers: GPUs, or processes on CPU")
    add_trust_option(parser)
    add_import_option(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    return parser


def configured(args: argparse.Namespace) -> CfgNode:
    """Return the config with the command's own options in it.

    Raises:
        ValueError: see `read_config`.
    """
    settings = {"ENABLED": True, "NUM_ITER": args.num_iter, "ROI_SOURCE": args.roi_source}
    settings["MODULES"] = args.modules
    options = [
        text
        for key, value in settings.items()
        if value is not None
        for text in (f"TEST.PRECISE_BN.{key}", str(value))
    ]
    if args.per_level:
        options += ["MODEL.LEVEL_BN.POPULATION", "level"]
    return read_config(argparse.Namespace(config_file=args.config_file, opts=args.opts + options))


def check_files(args: argparse.Namespace) -> None:
    """Find an input that is missing, and an output that would be lost or cannot be written.

    Raises:
        ValueError: a mistake on the command line.
        OSError: the output cannot be written, say for lack of space for as much as the input.
    """
    if not args.weights.is_file():
        raise ValueError(f"--weights {args.weights}: no such file")
    size = args.weights.stat().st_size
    if args.in_place:
        check_writable(args.weights, size)
        return
    if args.output.exists() and args.output.samefile(args.weights):
        raise ValueError(f"--output {args.output} is --weights; use --in-place to write over it")
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"--output {args.output} exists; use --overwrite to replace it")
    if not args.output.parent.is_dir():
        raise ValueError(f"--output {args.output}: no folder {args.output.parent}")
    check_writable(args.output, size)


def load_all(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load every parameter and buffer; entries that the model lacks are fine.

    Where the model keeps statistics per level and `state` shared ones, each level gets these.

    Raises:
        CheckpointError: an entry is missing, or has another shape: with a part at its initial
            values, the statistics would be those of another model.
    """
    fill_levels(model, state)
    load_whole(model, state, f"--weights {path} does not fit --config-file")


def check(args: argparse.Namespace) -> CfgNode:
    """Find everything that can be known to fail before the workers start; returns the config.

    Raises:
        ValueError: a setting, a dataset, the checkpoint, or a model without BN.
        OSError: see `check_files`.
    """
    check_files(args)
    import_modules(args.imports)
    cfg = configured(args)
    names = [*cfg.DATASETS.TRAIN, *(cfg.DATASETS.TEST if args.evaluate else ())]
    workers = expected_world_size(args.num_gpus)
    model = check_run(cfg, workers, BNTrainer, names, trains=False, precise=True)
    load_all(model, read_state(args.weights, trust=args.trust_checkpoint)[1], args.weights)
    return cfg


def work(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Do one worker's part; with --evaluate, which writes into OUTPUT_DIR, alone in that folder."""
    writes = args.evaluate and comm.is_main_process()
    with sole_user(cfg.OUTPUT_DIR, "OUTPUT_DIR") if writes else contextlib.nullcontext():
        _rewrite(cfg, args)


def _rewrite(cfg: CfgNode, args: argparse.Namespace) -> None:
    import_modules(args.imports)
    setup_logger(distributed_rank=comm.get_rank())
    cfg = BNTrainer.auto_scale_workers(cfg, comm.get_world_size())
    if cfg.MODEL.DEVICE == "cpu":
        share_cores()
    seed_all_rng(max(cfg.SEED, 0) + comm.get_rank())
    register_derived([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    model = BNTrainer.build_model(cfg)
    checkpoint, state = read_state(args.weights, trust=args.trust_checkpoint)
    load_all(model, state, args.weights)
    before = evaluate_under(cfg, model, ["population"]) if args.evaluate else {}
    precise_bn(cfg, model)
    if comm.is_main_process():
        for name, layer in select_bn_layers(model, cfg.TEST.PRECISE_BN.MODULES or None).items():
            for part in ("running_mean", "running_var"):
                key = f"{name}.{part}"
                state[key] = getattr(layer, part).to("cpu", state[key].dtype)
        output = args.weights if args.in_place else args.output
        write_weights(output, checkpoint)
        print(f"Written to {output}")
        if args.per_level:
            print("Use it with MODEL.LEVEL_BN.POPULATION level")
    if args.evaluate:
        after = evaluate_under(cfg, model, ["population"])
        results = {"before": before["population"], "after": after["population"]}
        if comm.is_main_process():
            print(evaluation_table(results))


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code; see `run_command`."""
    args = argument_parser().parse_args(arguments)
    return run_command(
        lambda: check(args),
        lambda cfg: launch(work, args.num_gpus, timeout=TIMEOUT, args=(cfg, args)),
        go_on="" if args.evaluate else "nothing was written",  # it evaluates what it wrote
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
