"""Estimation shift: how far the population statistics in use are from those that a layer meets.

After Huang et al. (arXiv 2203.10778): a layer whose input is normalized with wrong statistics gets
other values than its own statistics were estimated on, so that errors may accumulate with depth.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..layers import NormalizationBatch
from ..population.bn_layers import running_statistics
from ..population.moments import Moments, moments
from ..population.observe import watch_input
from .adapters.heads import RoIHead
from .batches import take
from .decompose import buffers_of, load_buffers
from .probing import on_population_statistics, probing


@dataclass(frozen=True)
class LayerShift:
    """One layer's population statistics against the statistics of its input.

    A distance of means is in standard deviations of the input, one of deviations is the absolute
    logarithm of their ratio; both are root mean squares over the channels.

    Attributes:
        name: of the layer.
        mean, deviation: distances where the layers before it use their population statistics, as at
            inference.
        mean_alone, deviation_alone: where they use mini-batch statistics, as in training: the error
            of this layer's own estimate.
    """

    name: str
    mean: float
    deviation: float
    mean_alone: float
    deviation_alone: float


@dataclass(frozen=True)
class ShiftReport:
    """The result of `estimation_shift`; `print` shows a table.

    Attributes:
        layers: in the order in which the head calls them; none for a head without population
            statistics.
        rois: how many were seen.
    """

    layers: tuple[LayerShift, ...]
    rois: int

    def __str__(self) -> str:
        headers = [f"layer ({self.rois} RoIs)", "mean (sd)", "deviation (log)"]
        headers += ["mean alone", "deviation alone"]
        return str(tabulate([astuple(s) for s in self.layers], headers=headers, floatfmt=".3f"))


def estimation_shift(
    model: nn.Module,
    loader: Iterable[Any],
    num_batches: int,
    *,
    partition: NormalizationBatch | None = None,
    seed: int = 0,
) -> ShiftReport:
    """Compare each layer's population statistics with those of its input, over the same RoIs.

    A layer whose distance is larger than "alone" inherits the difference from the layers before it.
    RoIs are sampled as in training. The model is left as it was.

    Args:
        model, loader, num_batches, partition, seed: as in `companion_swap`; one batch is enough.

    Raises:
        ValueError: a loader ends early, or see `probing.probing`.
    """
    rois_seen = 0
    with probing(model, partition, seed) as (head, groups), torch.no_grad():
        at_inference, in_training = _Inputs(head), _Inputs(head)
        in_use = {name: value.clone() for name, value in buffers_of(head).items()}
        for step, batch in enumerate(take(loader, num_batches, "estimation shift")):
            (rois,) = head.sample(batch)
            rois_seen += len(rois)
            if len(rois):
                load_buffers(head, in_use)  # which mini-batches have moved
                with on_population_statistics(head), at_inference.observed():
                    head(rois.features)
            for group in groups(rois, step):
                with in_training.observed():
                    head(rois.features[group])
        load_buffers(head, in_use)
        layers = tuple(
            LayerShift(
                name,
                *_distances(head, name, met),
                *_distances(head, name, in_training.moments.get(name)),
            )
            for name, met in at_inference.moments.items()
        )
    return ShiftReport(layers, rois_seen)


class _Inputs:
    """Moments of the inputs of the layers with population statistics, in the order of the calls."""

    def __init__(self, head: RoIHead) -> None:
        self._layers = {n: m for n, m in head.bn_layers.items() if m.running_mean is not None}
        self.moments: dict[str, Moments] = {}

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        def see(name: str, x: Tensor) -> None:
            if name not in self.moments:
                self.moments[name] = Moments(x.shape[1], x.device)
            self.moments[name].merge(x.numel() // x.shape[1], *moments(x.double()))

        with contextlib.ExitStack() as hooks:
            for name, layer in self._layers.items():
                hooks.enter_context(watch_input(layer, partial(see, name)))
            yield


def _distances(head: RoIHead, name: str, met: Moments | None) -> tuple[float, float]:
    if met is None or not met.count:
        return float("nan"), float("nan")
    layer = head.bn_layers[name]
    running_mean, running_var = running_statistics(layer)
    variance = met.m2 / met.count + layer.eps
    mean = (running_mean.double() - met.mean) / variance.sqrt()
    deviation = 0.5 * ((running_var.double() + layer.eps) / variance).log()
    return float(mean.square().mean().sqrt()), float(deviation.square().mean().sqrt())
