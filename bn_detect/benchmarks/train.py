"""Whole training steps of the demo's detector, against Detectron2's own BN head."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from ..layers import set_iteration
from .measuring import default_device, interleaved, ratios, spread, threads, waiting_for
from .subjects import detector_batch, neon_config

HELP = "iterations per second of whole training steps"
REFERENCE = "Detectron2's own BN head"
IMAGES, SIDE = 4, 200
ROI_BN = "MODEL.ROI_BN."
OWN_HEADS = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
OWN_HEADS += ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"]
ARMS: dict[str, list[Any]] = {
    REFERENCE: OWN_HEADS,
    "images": [f"{ROI_BN}BATCH", "images"],
    "worker": [f"{ROI_BN}BATCH", "worker"],
    "worker, 2 virtual": [f"{ROI_BN}BATCH", "worker", f"{ROI_BN}VIRTUAL_WORKERS", 2],
    "shuffled, 2 virtual": [f"{ROI_BN}BATCH", "shuffled", f"{ROI_BN}VIRTUAL_WORKERS", 2],
    "global": [f"{ROI_BN}BATCH", "global"],
}


@dataclass(frozen=True)
class Row:
    """One arm: milliseconds of each step, and their ratios to Detectron2's."""

    arm: str
    ms: list[float]
    ratio: list[float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repetitions", type=int, default=40, help="steps of each arm")
    add("--threads", type=int, default=1, help="of PyTorch on CPU")


def run(args: argparse.Namespace) -> tuple[str, dict]:
    """Measure, and return the table and all numbers."""
    device = default_device()
    with threads(args.threads), EventStorage():
        steps = {arm: _step(_config(options, device)) for arm, options in ARMS.items()}
        seconds = interleaved(steps, args.repetitions, waiting_for(device))
    rows = [
        Row(arm, [1000 * s for s in times], ratios(times, seconds[REFERENCE]))
        for arm, times in seconds.items()
    ]
    lines = [
        [row.arm, spread([1000 / ms for ms in row.ms]), spread(row.ms, 1), spread(row.ratio, 3)]
        for row in rows
    ]
    headers = ["batch", "iterations per second", "ms", "ratio of times"]
    table = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    return table, {"device": str(device), "rows": [asdict(row) for row in rows]}


def _config(options: list, device: torch.device) -> CfgNode:
    cfg = neon_config()
    cfg.merge_from_list(["MODEL.DEVICE", str(device), *options])
    return cfg


def _step(cfg: CfgNode) -> Callable[[], None]:
    """One training step; every arm has the same weights at first, the same images and RoIs."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    batch = detector_batch(IMAGES, SIDE, seed=0)
    iteration = 0

    def step() -> None:
        nonlocal iteration
        torch.manual_seed(iteration)
        set_iteration(model, iteration)
        iteration += 1
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    return step
