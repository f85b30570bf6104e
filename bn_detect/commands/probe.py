"""`bn-detect probe`: does the box head of a checkpoint read the others in its batch?"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch import nn

from ..layers import NormalizationBatch
from ..probes import SwapReport, companion_swap, own_batch
from ..probes.adapters import find_head
from ..probes.registry import PROBES
from ..probes.swaps.verdicts import answers_of
from ..runtime.checkpoint_file import add_trust_option
from ..runtime.files import check_writable, write_json, write_text
from ..runtime.user_modules import import_modules
from .parser import add_import_option, command_parser
from .run import run_command

PROBE = PROBES["companion_swap"]
SCHEMA = 1
REPORT_BYTES = 100_000  # about what numbers, text and pictures take


@dataclasses.dataclass
class Subject:
    """A detector, and batches of images with ground truth as it was trained with."""

    name: str
    model: nn.Module
    loader: Iterable[Any]
    batches: int
    images_per_batch: int
    partition: NormalizationBatch
    dataset: str
    classes: list[str]


def argument_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = command_parser(
        "probe",
        "Swap the companions of RoIs in their normalization batch, and tell whether the box head "
        "of a checkpoint reads them.",
        [
            "--config-file FILE.yaml --weights model_final.pth --dataset coco_2017_val",
            "--torchvision fasterrcnn_resnet50_fpn_v2 --weights FILE.pth --coco-folder DIR",
        ],
        usage="(--config-file FILE | --torchvision NAME) --weights FILE\n"
        "                       [options] [KEY VALUE ...]",
        note="A config that ends in .py is a LazyConfig, which is executed: use those you trust.",
    )
    add = parser.add_argument
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--config-file", metavar="FILE", help="Detectron2's YAML, or a LazyConfig .py")
    of.add_argument("--torchvision", metavar="NAME", help="such as fasterrcnn_resnet50_fpn_v2")
    add("--weights", required=True, metavar="FILE", help="the checkpoint")
    add("--dataset", metavar="NAME", help="with --config-file (default: its first test dataset)")
    add("--coco-folder", metavar="DIR", help="with --torchvision: images and a JSON")
    add("--annotations", metavar="FILE", help="the JSON, where that folder has several")
    add("--num-classes", type=int, metavar="N", help="with --torchvision: background included")
    add("--min-size", type=int, metavar="PX", help="with --torchvision, if it was not 800")
    add("--images-per-gpu", type=int, metavar="N", help="with --torchvision (default: 2)")
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs that trained it (default: 1)")
    batch = "the normalization batch (default: as its layers say)"
    add("--batch", metavar="NAME", help=batch)
    images = "images to probe (default: %(default)s)"
    add("--num-images", type=int, default=PROBE.images, metavar="N", help=images)
    add("--seed", type=int, default=0, metavar="N", help="seed of all choices (default: 0)")
    output = "folder of the report (default: %(default)s)"
    add("--output", type=Path, default=Path("output/probe"), metavar="DIR", help=output)
    add_trust_option(parser)
    add_import_option(parser)
    more = "config keys, or overrides of a LazyConfig"
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=more)
    return parser


def check(args: argparse.Namespace) -> Subject:
    """Build and load everything; what cannot work is found here.

    Raises:
        ValueError: an option, the config, the checkpoint, the images.
        OSError: the output cannot be written.
    """
    for name, value in (
        ("--num-gpus", args.num_gpus),
        ("--num-images", args.num_images),
        ("--images-per-gpu", 2 if args.images_per_gpu is None else args.images_per_gpu),
        ("--min-size", 1 if args.min_size is None else args.min_size),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    own = ("coco_folder", "annotations", "num_classes", "min_size", "images_per_gpu")
    for name in own if args.config_file else ("dataset", "opts"):
        if getattr(args, name):
            kind = "--torchvision" if args.config_file else "--config-file"
            option = "KEY VALUE" if name == "opts" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for {kind} only; leave it out")
    import_modules(args.imports)
    partition = None
    if args.batch:
        try:
            partition = NormalizationBatch(args.batch, virtual_workers=args.num_gpus)
        except ValueError as error:
            raise ValueError(f"--{error}") from error
    args.output.mkdir(parents=True, exist_ok=True)
    check_writable(args.output / "probe.json", REPORT_BYTES)
    subject = _detectron2(args) if args.config_file else _torchvision(args)
    if partition:
        subject.partition = partition
    if subject.batches < 2:
        raise ValueError(
            f"{subject.dataset}, with --num-images {args.num_images}, gives {subject.batches} "
            f"batches of {subject.images_per_batch} images; a probe needs 2"
        )
    return subject


def _torchvision(args: argparse.Namespace) -> Subject:
    from ..probes.adapters.torchvision_files import CocoFolder, load_detector

    if not args.coco_folder:
        raise ValueError("--torchvision needs --coco-folder, with images as it was trained on")
    model: Any = load_detector(
        args.torchvision,
        args.weights,
        num_classes=args.num_classes,
        min_size=args.min_size,
        trust=args.trust_checkpoint,
    )
    images = (args.images_per_gpu or 2) * args.num_gpus
    loader = CocoFolder(
        args.coco_folder,
        args.annotations,
        num_classes=model.roi_heads.box_predictor.cls_score.out_features,
        images_per_batch=images,
        masks=model.roi_heads.has_mask(),
        seed=args.seed,
    )
    batches = min(len(loader), -(-args.num_images // images))
    partition = own_batch(model, args.num_gpus)
    of = (args.torchvision, model, loader, batches, images, partition)
    return Subject(*of, args.coco_folder, loader.classes)


def _detectron2(args: argparse.Namespace) -> Subject:
    from ..configuration.check import check_run
    from ..configuration.reading import read_config
    from ..engine.trainer import BNTrainer
    from ..runtime.checkpointer import AtomicCheckpointer
    from ..study.measures.subject import Subject as OfStudy

    cfg = read_config(args).clone()
    cfg.defrost()
    name = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if name is None:
        raise ValueError(f"{args.config_file}: DATASETS.TEST is empty; name a --dataset")
    cfg.DATASETS.TEST = (name,)
    if "://" not in args.weights and not Path(args.weights).is_file():
        raise ValueError(f"--weights {args.weights}: no such file")
    check_run(cfg, args.num_gpus, BNTrainer, [name], trains=False)
    cfg = BNTrainer.auto_scale_workers(cfg, args.num_gpus).clone()
    cfg.defrost()
    cfg.MODEL.ROI_BN.VIRTUAL_WORKERS *= args.num_gpus
    cfg.MODEL.ROI_BN.EXCHANGE = "statistics"  # one process has nobody to exchange with
    model = BNTrainer.build_model(cfg)
    AtomicCheckpointer(model, whole=True, trust=args.trust_checkpoint).load(args.weights)
    find_head(model)
    subject = OfStudy(cfg, model, args.output, {})
    loader = subject.loader(seed=args.seed)
    return Subject(
        args.config_file,
        model,
        loader,
        subject.batches(args.num_images, loader),
        cfg.SOLVER.IMS_PER_BATCH,
        subject.partition,
        name,
        subject.classes,
    )


def work(subject: Subject, args: argparse.Namespace, command: str) -> None:
    """Probe the head, print the answer, and write it with its numbers and pictures."""
    images = subject.batches * subject.images_per_batch
    print(f"Probing {subject.name} on {images} images of {subject.dataset} ...", flush=True)
    of = (subject.model, subject.loader, subject.batches)
    report = companion_swap(*of, partition=subject.partition, seed=args.seed)
    answer = summary(report, subject)
    found = {**dataclasses.asdict(report), "classes": subject.classes}
    write_json(
        args.output / "probe.json",
        {
            "schema": SCHEMA,
            "command": command,
            "model": subject.name,
            "weights": args.weights,
            "dataset": subject.dataset,
            "images_per_batch": subject.images_per_batch,
            "normalization_batch": dataclasses.asdict(subject.partition),
            "companion_swap": found,
        },
    )
    pictures = []
    for figure in PROBE.figures:
        drawn = figure.draw({Path(subject.name).stem: [found]})
        path = args.output / f"{figure.name}.png"
        path.unlink(missing_ok=True)  # of the probe before
        if drawn is not None:
            drawn.savefig(path, dpi=120, bbox_inches="tight")
            pictures.append(f"![{figure.caption}]({path.name})")
    page = [f"# {subject.name}: {args.weights}", answer, *pictures, f"```\n{report}\n```"]
    page += [f"Made by `{command}`."]
    write_text(args.output / "probe.md", "\n\n".join(page) + "\n")
    print(f"\n{answer}\n\nThe report is {args.output / 'probe.md'}")


def summary(report: SwapReport, subject: Subject) -> str:
    """Say what the head reads, and how sure that is."""
    batch, workers = subject.partition.batch, subject.partition.virtual_workers
    answers = answers_of(vars(report))
    sizes = [
        f"{a.mean:+.4f} nats [{a.over_images.low:.4f}, {a.over_images.high:.4f}]"
        for a in answers
        if a.read or a.open
    ]
    lines = [f"**The head {report.verdict}{': ' * bool(sizes)}{', '.join(sizes)}.**", ""]
    if not find_head(subject.model).bn_layers:
        lines += ["It has no BatchNorm, so RoIs cannot meet in it.", ""]
    rows = []
    for a in answers:
        tested = [f"{a.p:.4f}", f"{a.detectable:.4f}"] if a.p == a.p else ["not tested", ""]
        mean = str(a.over_images) if a.images else "not measured"
        rows.append([a.question.name, mean, *tested, f"{a.rois} of {a.asked}", a.images])
    headers = ["nats per RoI", "mean [95% interval]", "p", "smallest that would show"]
    headers += ["RoIs with such companions", "images"]
    lines += [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
    lines += [
        f"Flipped predictions: {report.flip_rate} of the RoIs when companions come from other "
        f"images, {report.null_flip_rate} when they come from the same ones.",
        f"Measured: {report.rois} RoIs of {report.images} images, {subject.images_per_batch} in a "
        f"batch; normalization batch: {batch}" + (f", {workers} workers." if workers > 1 else "."),
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code; see `run_command`."""
    args = argument_parser().parse_args(arguments)
    command = shlex.join(["bn-detect", "probe", *arguments])
    return run_command(lambda: check(args), lambda subject: work(subject, args, command))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
