"""The measure "moving_averages": several moving averages of one training run against PreciseBN."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from tabulate import tabulate
from torch import Tensor, nn

from ...layers import RoIBatchNorm2d
from ...population.undisturbed import kept_buffers
from ...reporting.columns import Column, Result
from ...reporting.drawing import Picture, Results, band, panels, style, wrapped
from ...reporting.estimates import mean_of
from .classification import check_classifier, error, followed, in_batches, precise
from .measure import Measure, Options
from .subject import Images, mapped_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENTA = (0.5, 0.1, 0.01, 0.001)  # the weight of a new batch, torch's convention
CHECKS = 20  # evaluations over training
SAMPLES = (16, 32, 64, 128, 256, 512)
DRAWS = 5
PRECISE = len(MOMENTA) + 1  # column of the rows of "errors"
ESTIMATES = {**{i + 1: f"EMA {m}" for i, m in enumerate(MOMENTA)}, PRECISE: "PreciseBN"}
WHEN = {"half": "half-way", "end": "at the end"}
Errors = np.ndarray  # (checks,), percent


class FollowAverages(HookBase):
    """Keep several moving averages of one training run, and evaluate with each of them.

    Training normalizes with mini-batches, so the averages do not change it, and one run serves all.

    Attributes:
        result: "errors": rows [iterations done, by each momentum ..., by PreciseBN], validation, %.
            "means": rows [iterations done, mini-batch, by each momentum ..., PreciseBN], the mean
            of one channel of the last BN layer; PreciseBN's is None between evaluations.
            "samples": by "half" and "end" of training, number of samples -> errors, one a draw.
    """

    def __init__(self, train: Images, val: list[Images]) -> None:
        self._train, self._val = train, val
        self.result: dict[str, Any] = {"errors": [], "means": [], "samples": {}}
        self._averages: dict[str, list[Tensor]] = {}

    def before_train(self) -> None:
        self._model: nn.Module = self.trainer.model
        self._layers = [m for m in self._model.modules() if isinstance(m, RoIBatchNorm2d)]
        for layer in self._layers:
            layer.momentum = 1.0  # the buffers then hold the statistics of the latest step
        self._averages = self._averages or {str(m): self._statistics() for m in MOMENTA}

    def after_step(self) -> None:
        latest = self._statistics()
        for momentum, average in self._averages.items():
            for old, new in zip(average, latest, strict=True):
                old.lerp_(new, float(momentum))
        done, whole = self.trainer.iter + 1, self.trainer.max_iter
        means = [_channel_mean(each) for each in (latest, *self._averages.values())]
        row: list[float | None] = [done, *means, None]
        if done * CHECKS // whole > (done - 1) * CHECKS // whole:
            row[-1] = self._evaluate(done)
        self.result["means"].append(row)
        for when, iteration in (("half", whole // 2), ("end", whole)):
            if done == iteration:
                self.result["samples"][when] = {str(n): self._with_samples(n) for n in SAMPLES}

    def _evaluate(self, done: int) -> float:
        """Append to the errors; return PreciseBN's mean of the channel."""
        row: list[float] = [done]
        for average in self._averages.values():
            with kept_buffers(self._model):
                self._put(average)
                row.append(error(self._model, self._val))
        with precise(self._model, in_batches(self._train)):
            row.append(error(self._model, self._val))
            mean = _channel_mean(self._statistics())
        self.result["errors"].append(row)
        return mean

    def _with_samples(self, number: int) -> list[float]:
        errors = []
        for draw in range(DRAWS):
            chosen = np.random.default_rng([draw, number]).permutation(len(self._train))[:number]
            with precise(self._model, in_batches([self._train[i] for i in chosen])):
                errors.append(error(self._model, self._val))
        return errors

    def _statistics(self) -> list[Tensor]:
        """Copy mean and variance of each layer, in float64."""
        return [buffer.double().clone() for buffer in self._buffers()]

    @torch.no_grad()
    def _put(self, statistics: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers(), statistics, strict=True):
            buffer.copy_(value)

    def _buffers(self) -> list[Tensor]:
        both = (b for layer in self._layers for b in (layer.running_mean, layer.running_var))
        return [buffer for buffer in both if buffer is not None]

    def state_dict(self) -> dict[str, Any]:
        return {"result": self.result, "averages": self._averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.result, self._averages = state["result"], state["averages"]


def _channel_mean(statistics: list[Tensor]) -> float:
    return statistics[-2][0].item()


def _follow(cfg: CfgNode, options: Options) -> FollowAverages:
    train, val = (mapped_images(cfg, names[0]) for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
    return FollowAverages(train, in_batches(val))


def _check(cfg: CfgNode, model: nn.Module, options: Options) -> None:
    check_classifier(cfg, model, options)
    if not any(isinstance(m, RoIBatchNorm2d) for m in model.modules()):
        raise ValueError("the model has no BatchNorm layer whose average could be followed")


_SUMMARIES: dict[str, Callable[[Errors], float]] = {
    "mean over the first half": lambda e: float(e[: max(1, len(e) // 2)].mean()),
    "mean over the second half": lambda e: float(e[len(e) // 2 :].mean()),
    "change from check to check, second half": lambda e: float(
        np.abs(np.diff(e[len(e) // 2 :])).mean()
    ),
    "at the end": lambda e: float(e[-1]),
}
FIRST_HALF = next(iter(_SUMMARIES))


def _summary(column: int, of: Callable[[Errors], float], result: Result) -> float:
    return of(np.array(result["errors"], dtype=float)[:, column])


def _gap(column: int, result: Result) -> float:
    early = _SUMMARIES[FIRST_HALF]
    return _summary(column, early, result) - _summary(PRECISE, early, result)


def _columns() -> tuple[Column, ...]:
    """A column for each estimate and summary, and the gap to PreciseBN in the first half."""
    columns = [
        Column(
            f"{name}, {key}",
            f"{name}, {key} (%)",
            1,
            partial(_summary, number, of),
            f"Validation error under the statistics of {name}: {key}.",
        )
        for number, name in ESTIMATES.items()
        for key, of in _SUMMARIES.items()
    ]
    gaps = {n: f"{name} - PreciseBN, {FIRST_HALF}" for n, name in ESTIMATES.items() if n != PRECISE}
    columns += [
        Column(
            key,
            f"{key} (%)",
            1,
            partial(_gap, number),
            f"Validation error under {ESTIMATES[number]} minus that under PreciseBN, {FIRST_HALF}.",
        )
        for number, key in gaps.items()
    ]
    return tuple(columns)


def _tables(results: Results) -> str:
    """The errors over training, a table per arm, and the errors by number of samples."""
    text = []
    for arm, runs in results.items():
        rows = []
        for number, name in ESTIMATES.items():
            cells = [
                mean_of([_summary(number, of, run) for run in runs]).cell()
                for of in _SUMMARIES.values()
            ]
            gap = mean_of([_gap(number, run) for run in runs])
            rows.append([name, *cells, "" if number == PRECISE else gap.cell(sign="+")])
        headers = ["statistics", *_SUMMARIES, "first half - PreciseBN"]
        text += [
            f"### {arm}",
            "Validation error, %:",
            tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        ]
    moments = [(arm, when) for arm in results for when in WHEN]
    rows = [
        [str(n), *(mean_of(_samples(results[a], w, n)).cell() for a, w in moments)] for n in SAMPLES
    ]
    headers = ["images", *(f"{arm}, {WHEN[when]}" for arm, when in moments)]
    lines = [_enough(results[arm], arm, when) for arm, when in moments]
    text += [
        "### Samples for PreciseBN",
        f"Validation error, %, mean over {DRAWS} draws of the samples:",
        tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        "\n".join(lines),
    ]
    return "\n\n".join(text)


def _samples(runs: list[Result], when: str, number: int) -> list[float]:
    return [float(np.mean(run["samples"][when][str(number)])) for run in runs]


def _enough(runs: list[Result], arm: str, when: str) -> str:
    """Say how many images are within half a point of the most."""
    most = _samples(runs, when, SAMPLES[-1])
    gaps = {
        n: mean_of([value - most[i] for i, value in enumerate(_samples(runs, when, n))])
        for n in SAMPLES[:-1]
    }
    enough = [n for n, gap in gaps.items() if gap.high < 0.5]
    least = f"{enough[0]} images are" if enough else f"no number below {SAMPLES[-1]} is"
    text = ", ".join(f"{n}: {gap.cell(sign='+')}" for n, gap in gaps.items())
    return f"* {arm}, {WHEN[when]}: {least} within 0.5 points of {SAMPLES[-1]} ({text})."


def _look(number: int) -> dict[str, Any]:
    return {"color": "black"} if number == PRECISE else style("", number - 1)


def _draw_errors(results: Results) -> "Figure":
    figure, axes = panels(len(results), 4.5, 3.6, sharey=True)
    for axis, (arm, runs) in zip(axes, results.items(), strict=True):
        errors = np.stack([np.array(run["errors"], dtype=float) for run in runs])
        for number, name in ESTIMATES.items():
            estimates = [mean_of(list(row)) for row in errors[:, :, number].T]
            band(axis, list(errors[0, :, 0]), estimates, name, **_look(number))
        axis.set_yscale("log")
        axis.set_ylim(1.5, 110)
        axis.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
        axis.set_title(wrapped(arm, 4), fontsize=9)
        axis.set_xlabel("iteration")
    axes[0].set_ylabel("validation error (%)")
    axes[0].legend(fontsize=8)
    return figure


def _draw_means(results: Results) -> "Figure":
    """One channel over training, of the first seed."""
    figure, axes = panels(len(results), 4.5, 3.2)
    for axis, (arm, runs) in zip(axes, results.items(), strict=True):
        rows = np.array(runs[0]["means"], dtype=float)
        axis.plot(rows[:, 0], rows[:, 1], lw=0.6, label="mini-batch", **style("minibatch"))
        for number, name in ESTIMATES.items():
            if number != PRECISE:
                axis.plot(rows[:, 0], rows[:, number + 1], lw=1.2, label=name, **_look(number))
        known = ~np.isnan(rows[:, -1])
        axis.plot(rows[known, 0], rows[known, -1], marker=".", label="PreciseBN", **_look(PRECISE))
        axis.set_title(wrapped(arm, 4), fontsize=9)
        axis.set_xlabel("iteration")
    axes[0].set_ylabel("mean of a channel")
    axes[0].legend(fontsize=7)
    return figure


MEASURE = Measure(
    followed("moving_averages"),
    columns=_columns(),
    figures=(
        Picture("averages", "Validation error over training: mean and 95% interval.", _draw_errors),
        Picture(
            "means",
            "One channel's mean in the last BN layer over training, first seed.",
            _draw_means,
        ),
    ),
    tables=_tables,
    check=_check,
    reads=("TEST", "TRAIN"),
    follow=_follow,
)
