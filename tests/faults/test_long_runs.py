"""Memory, files and process groups over many iterations."""

import gc
import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.engine import HookBase

from bn_detect.engine import BNTrainer
from tests.helpers.ranks import run_ranks
from tests.helpers.train_net import REPOSITORY

matplotlib.use("Agg")

PICTURE = REPOSITORY / "docs/images/long_run.png"
WARM_UP = 0.25  # of the iterations


class Sampler(HookBase):
    """Every so many iterations: iteration, RSS and GPU memory in MB, open files, groups."""

    def __init__(self, every: int) -> None:
        self.every, self.samples = every, []

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.every:
            return
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        on_gpu = torch.cuda.memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
        self.samples.append(
            (
                self.trainer.iter + 1,
                pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
                on_gpu,
                len(os.listdir("/proc/self/fd")),
                len(dist.distributed_c10d._world.pg_map),
            )
        )


def train(rank: int, world_size: int, root: Path, output: Path, iterations: int) -> list[tuple]:
    from tests.helpers.in_process import config

    period = max(15, iterations // 8)
    cfg = config(
        root,
        output,
        SOLVER__MAX_ITER=iterations,
        SOLVER__CHECKPOINT_PERIOD=period,
        TEST__PRECISE_BN__ENABLED=True,
        TEST__PRECISE_BN__NUM_ITER=2,
        TEST__PRECISE_BN__PERIOD=period,
        MODEL__ROI_BN__BATCH="shuffled",
        MODEL__ROI_BOX_HEAD__CONV_DIM=16,
        SOLVER__BASE_LR=0.002,
    )
    output.mkdir(exist_ok=True)
    trainer = BNTrainer(cfg)
    sampler = Sampler(max(5, iterations // 50))  # collecting garbage takes long
    trainer.register_hooks([sampler])
    trainer.train()
    return sampler.samples


def draw(ranks: list[list[tuple]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(7, 6), sharex=True, layout="constrained")
    for rank, samples in enumerate(ranks):
        iteration, rss, _, files, groups = np.array(samples).T
        for axis, values in zip(axes, (rss, files, groups), strict=True):
            axis.plot(iteration, values, label=f"rank {rank}")
    for axis, label in zip(axes, ("RSS, MB", "open files", "process groups"), strict=True):
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    axes[-1].set_xlabel("iteration")
    figure.savefig(path, dpi=100)
    plt.close(figure)


@pytest.mark.fault(
    "2,000 iterations on two ranks with shuffled batches, PreciseBN and checkpoints",
    should="memory, open files and process groups are flat after the first quarter",
)
@pytest.mark.timeout(1200)
def test_flat(server, tmp_path, size, happened, request):
    iterations = size(60, 2000)
    ranks = run_ranks(train, 2, server.root, tmp_path / "out", iterations, timeout=1100)
    if request.config.getoption("faults", None) is not None:
        draw(ranks, PICTURE)
    said = []
    for rank, samples in enumerate(ranks):
        rows = np.array(samples)
        rows = rows[rows[:, 0] > WARM_UP * iterations]
        third = len(rows) // 3
        grown = rows[-third:].mean(0) - rows[:third].mean(0)
        assert grown[1] < max(10, 0.02 * rows[0, 1]), f"rank {rank}: RSS grew by {grown[1]:.1f} MB"
        assert grown[2] < 1
        assert grown[3] < 1 and np.ptp(rows[:, 4]) == 0, f"rank {rank}: {rows[:, 3:]}"
        said.append(f"rank {rank}: RSS {rows[0, 1]:.0f} MB, {grown[1]:+.1f} MB in {iterations} its")
    gpu = "" if torch.cuda.is_available() else "; no GPU here, its memory not run"
    happened(f"{'; '.join(said)}; files and groups constant{gpu}")
