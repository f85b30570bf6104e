"""Experiment (c): moving averages of several momenta against PreciseBN over training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from torch import Tensor

from ..layers import RoIBatchNorm2d
from ..modeling import BNImageClassifier
from ..population.undisturbed import kept_buffers
from .job import Job
from .measuring import Batch, error, images, in_batches, precise
from .training import settings, trained

MOMENTA = (0.5, 0.1, 0.01, 0.001)  # the weight of a new batch, torch's convention
GROUP = 16  # normalization batch
SCALES = {1: 16, 8: 128}  # total batch; the learning rate is RATE times its scale
RATE, EPOCHS = 0.05, 20
CHECKS = 20  # evaluations over training
SAMPLES = (16, 32, 64, 128, 256, 512)
DRAWS = 5


def jobs(seed: int, options: tuple[str, ...] = ()) -> list[Job]:
    """A run for each scale of learning rate and batch."""
    return [
        Job(
            "averages",
            f"scale_{scale}",
            seed,
            (
                *("MODEL.ROI_BN.BATCH", "images", "MODEL.ROI_BN.IMAGES_PER_GROUP", str(GROUP)),
                *("SOLVER.IMS_PER_BATCH", str(batch), "SOLVER.BASE_LR", str(RATE * scale)),
                *("SOLVER.MAX_ITER", str(797 * EPOCHS // batch)),
                *options,
            ),
        )
        for scale, batch in SCALES.items()
    ]


def run(job: Job, output: Path) -> dict[str, Any]:
    """Errors in percent over training and by number of samples, and one channel's mean."""
    cfg = settings(job, output)
    train = images(cfg, cfg.DATASETS.TRAIN[0])
    val = in_batches(images(cfg, cfg.DATASETS.TEST[0]))
    follow = FollowAverages(train, val)
    trained(job, cfg, output, [follow])
    return {
        "iterations": cfg.SOLVER.MAX_ITER,
        "errors": follow.errors,
        "means": follow.means,
        "samples": follow.samples,
    }


class FollowAverages(HookBase):
    """Keeps several moving averages of one training run, and evaluates with each of them.

    Training normalizes with mini-batches, whatever the averages are; so one run serves them all.

    Attributes:
        errors: rows [iterations done, by each momentum ..., by PreciseBN], validation, percent.
        means: rows [iterations done, mini-batch, by each momentum ..., PreciseBN]: the mean of one
            channel of the last BN layer; PreciseBN's is None between evaluations.
        samples: by "half" and "end" of training, number of samples -> errors, one a draw.
    """

    def __init__(self, train: Batch, val: list[Batch]) -> None:
        self._train, self._val = train, val
        self.errors: list[list[float]] = []
        self.means: list[list[float | None]] = []
        self.samples: dict[str, dict[int, list[float]]] = {}

    def before_train(self) -> None:
        self._model: BNImageClassifier = self.trainer.model
        self._layers = [m for m in self._model.modules() if isinstance(m, RoIBatchNorm2d)]
        for layer in self._layers:
            layer.momentum = 1.0  # the buffers then hold the statistics of the latest step
        self._averages = {momentum: self._statistics() for momentum in MOMENTA}

    def after_step(self) -> None:
        latest = self._statistics()
        for momentum, average in self._averages.items():
            for old, new in zip(average, latest, strict=True):
                old.lerp_(new, momentum)
        done, whole = self.trainer.iter + 1, self.trainer.max_iter
        mean = self._channel_mean
        row = [done, mean(latest), *(mean(a) for a in self._averages.values()), None]
        if done * CHECKS // whole > (done - 1) * CHECKS // whole:
            row[-1] = self._evaluate(done)
        self.means.append(row)
        for when, iteration in (("half", whole // 2), ("end", whole)):
            if done == iteration:
                self.samples[when] = {n: self._with_samples(n) for n in SAMPLES}

    def _evaluate(self, done: int) -> float:
        """Append to `errors`; returns PreciseBN's mean of the channel."""
        row: list[float] = [done]
        for average in self._averages.values():
            with kept_buffers(self._model):
                self._put(average)
                row.append(error(self._model, self._val))
        with precise(self._model, in_batches(self._train)):
            row.append(error(self._model, self._val))
            mean = self._channel_mean(self._statistics())
        self.errors.append(row)
        return mean

    def _with_samples(self, number: int) -> list[float]:
        found = []
        for draw in range(DRAWS):
            chosen = np.random.default_rng([draw, number]).permutation(len(self._train))[:number]
            with precise(self._model, in_batches([self._train[i] for i in chosen])):
                found.append(error(self._model, self._val))
        return found

    def _statistics(self) -> list[Tensor]:
        """Copies, in float64: mean and variance of each layer."""
        return [
            b.double().clone()
            for layer in self._layers
            for b in (layer.running_mean, layer.running_var)
        ]

    @torch.no_grad()
    def _put(self, statistics: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers(), statistics, strict=True):
            buffer.copy_(value)

    def _buffers(self) -> list[Tensor]:
        return [b for layer in self._layers for b in (layer.running_mean, layer.running_var)]

    @staticmethod
    def _channel_mean(statistics: list[Tensor]) -> float:
        return statistics[-2][0].item()
