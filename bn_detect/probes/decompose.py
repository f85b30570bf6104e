"""Decomposition: how much of an error is training noise, generalization, and inconsistency.

After Wu & Johnson (2021, Section 4): the same RoIs of training and validation images, normalized as
in training (mini-batch statistics) and as in inference (population statistics, by moving average
and by PreciseBN).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..layers import NormalizationBatch
from ..population.bn_layers import unwrapped
from ..population.precise_bn import update_population_stats
from ..population.undisturbed import undisturbed
from .adapters.heads import RoIHead
from .adapters.torchvision_heads import TorchvisionHead
from .batches import take
from .probing import find_head, on_population_statistics, probing, require_one_process
from .rois import RoIs

STATISTICS = ("minibatch", "ema", "precise")
EVALUATED = {"minibatch": "minibatch", "ema": "population", "precise": "precise"}

Evaluate = Callable[[str], Mapping[str, Mapping[str, float]]]  # kind -> split -> metric -> percent
Buffers = dict[str, Tensor]  # dotted name in the model -> value


@dataclass(frozen=True)
class DecompositionRow:
    """One kind of statistics on one set of images.

    Attributes:
        split: name of the loader. statistics: "minibatch", "ema" or "precise".
        loss: classification loss in nats. accuracy, foreground_accuracy: share of all RoIs, and of
            foreground RoIs, whose predicted class is right. NaN where there is no such RoI.
        ap, ap50: box AP in percent; None where not evaluated.
    """

    split: str
    statistics: str
    loss: float
    accuracy: float
    foreground_accuracy: float
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class DecompositionReport:
    """What `decomposition` found; `print` shows a table.

    Attributes:
        rows: a row per loader and kind of statistics, in that order.
    """

    rows: tuple[DecompositionRow, ...]

    def __str__(self) -> str:
        headers = ["split", "statistics", "loss (nats)", "accuracy", "of foreground", "AP", "AP50"]
        rows = [
            [r.split, r.statistics, r.loss, r.accuracy, r.foreground_accuracy, r.ap, r.ap50]
            for r in self.rows
        ]
        digits = ["", "", ".3f", ".3f", ".3f", ".1f", ".1f"]
        return tabulate(rows, headers=headers, floatfmt=digits)


def decomposition(
    model: nn.Module,
    loaders: Mapping[str, Iterable],
    num_batches: int,
    *,
    population_loader: Iterable,
    population_batches: int,
    partition: NormalizationBatch | None = None,
    evaluate: Evaluate | None = None,
    seed: int = 0,
) -> DecompositionReport:
    """Loss and accuracy of the box head by images and by statistics.

    The loss under "minibatch" on training images holds the noise of training; its difference on
    validation images is the generalization gap; that between "precise" and "minibatch" on
    validation images is the inconsistency of training and testing. "ema" differs from "precise" by
    how bad an estimate of the population the moving average is.

    RoIs are sampled as in training, and the same for all statistics; so are their features, for
    only the statistics of the box head change. A head without BatchNorm has equal rows.

    The model is left as it was: buffers, modes, hooks and random number generators.

    Args:
        model, partition, seed: as in `companion_swap`.
        loaders: name of a set of images -> its batches, `num_batches` of each.
        population_loader: training batches for PreciseBN, `population_batches` of them.
        evaluate: called with "minibatch", "population" and "precise", it returns for each name of
            `loaders` the AP and AP50 of the whole detector, {"AP": .., "AP50": ..}, in percent.

    Raises:
        ValueError: settings that cannot work, a loader that ends early, a model of a kind that is
            not known.
    """
    require_one_process()
    precise = _precise_statistics(model, population_loader, population_batches)
    found: dict[tuple[str, str], _Tally] = {}
    with probing(model, partition, seed) as (head, groups), torch.no_grad():
        ema = {name: value.clone() for name, value in _buffers(head).items()}
        for split, loader in loaders.items():
            tallies = {kind: _Tally(head) for kind in STATISTICS}
            found |= {(split, kind): tally for kind, tally in tallies.items()}
            for step, batch in enumerate(take(loader, num_batches, f"decomposition, {split}")):
                (rois,) = head.sample(batch)
                for group in groups(rois, step):
                    tallies["minibatch"].add(rois, group, head(rois.features[group]).logits)
                if not len(rois):
                    continue
                everything = torch.arange(len(rois))
                for kind, statistics in (("ema", ema), ("precise", precise)):
                    _load(head, ema | statistics)
                    with on_population_statistics(head):
                        logits = head(rois.features).logits
                    tallies[kind].add(rois, everything, logits)
    ap = {kind: evaluate(EVALUATED[kind]) if evaluate else {} for kind in STATISTICS}
    return DecompositionReport(
        tuple(
            DecompositionRow(
                split,
                kind,
                *tally.means(),
                ap[kind].get(split, {}).get("AP"),
                ap[kind].get(split, {}).get("AP50"),
            )
            for (split, kind), tally in found.items()
        )
    )


class _Tally:
    """Loss and right predictions, added up over RoIs."""

    def __init__(self, head: RoIHead) -> None:
        self._head = head
        self._loss = 0.0
        self._right = self._count = self._right_foreground = self._foreground = 0

    def add(self, rois: RoIs, indices: Tensor, logits: Tensor) -> None:
        labels, foreground = rois.labels[indices], rois.foreground[indices]
        right = self._head.predictions(logits).cpu() == labels
        self._loss += float(self._head.class_loss(logits, labels).double().sum())
        self._right += int(right.sum())
        self._count += len(labels)
        self._right_foreground += int(right[foreground].sum())
        self._foreground += int(foreground.sum())

    def means(self) -> tuple[float, float, float]:
        """Loss, accuracy, accuracy of foreground."""

        def mean(total: float, count: int) -> float:
            return total / count if count else float("nan")

        return (
            mean(self._loss, self._count),
            mean(self._right, self._count),
            mean(self._right_foreground, self._foreground),
        )


class _Unpacked(nn.Module):
    """A torchvision model that takes a batch as one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: tuple) -> dict[str, Tensor]:
        return self.model(*batch)


def _precise_statistics(model: nn.Module, loader: Iterable, num_batches: int) -> Buffers:
    """The buffers of the box head after a PreciseBN pass; none where it has no BN layers."""
    model = unwrapped(model)
    head = find_head(model)
    tracked = [name for name, m in head.bn_layers.items() if m.running_mean is not None]
    if not tracked:
        return {}
    with undisturbed(model):
        if isinstance(head, TorchvisionHead):
            tracked = [f"model.{name}" for name in tracked]
            update_population_stats(_Unpacked(model), loader, num_batches, modules=tracked)
        else:
            update_population_stats(model, loader, num_batches, modules=tracked)
        return {name: value.clone() for name, value in _buffers(head).items()}


def _buffers(head: RoIHead) -> Buffers:
    return {
        f"{name}.{key}": buffer
        for name, layer in head.bn_layers.items()
        for key, buffer in layer.named_buffers()
    }


def _load(head: RoIHead, values: Buffers) -> None:
    for name, buffer in _buffers(head).items():
        buffer.copy_(values[name])
