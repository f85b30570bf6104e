"""Decomposition of an error into training noise, generalization gap and train-test inconsistency.

After Wu & Johnson (2021, Section 4): the same RoIs of training and validation images are normalized
as in training (mini-batch statistics) and as in inference (population statistics: those that the
model holds, and those of a PreciseBN pass).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..layers import STATISTICS, NormalizationBatch
from ..population.bn_layers import unwrapped
from ..population.precise_bn import update_population_stats
from ..population.undisturbed import undisturbed
from .adapters import find_head
from .adapters.heads import RoIHead
from .batches import take
from .probing import on_population_statistics, probing, require_one_process
from .rois import RoIs

# Kind of statistics -> split -> metric -> percent
Evaluate = Callable[[str], Mapping[str, Mapping[str, float]]]
Buffers = dict[str, Tensor]  # dotted name in the model -> value


@dataclass(frozen=True)
class DecompositionRow:
    """The box head on one set of images under one kind of statistics.

    Attributes:
        split: name of the loader.
        statistics: "minibatch", "population" or "precise".
        loss: mean classification loss of a RoI, in nats; NaN where there is no RoI.
        accuracy: share of all RoIs whose predicted class is right.
        foreground_accuracy: the same of foreground RoIs.
        object_loss: mean classification loss of the RoIs that are boxes of the ground truth, in
            nats; of those that were sampled.
        object_accuracy: share of them whose most probable class, background left out, is right.
        ap, ap50: box AP in percent; None where not evaluated.
    """

    split: str
    statistics: str
    loss: float
    accuracy: float
    foreground_accuracy: float
    object_loss: float
    object_accuracy: float
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class DecompositionReport:
    """The result of `decomposition`; `print` shows a table.

    Attributes:
        rows: one for each loader and kind of statistics, in that order.
    """

    rows: tuple[DecompositionRow, ...]

    def __str__(self) -> str:
        headers = ["split", "statistics", "loss (nats)", "accuracy", "foreground accuracy"]
        headers += ["loss of objects (nats)", "accuracy of objects", "AP", "AP50"]
        digits = ["", "", *5 * [".3f"], ".1f", ".1f"]
        return str(tabulate([astuple(row) for row in self.rows], headers=headers, floatfmt=digits))


def decomposition(
    model: nn.Module,
    loaders: Mapping[str, Iterable[Any]],
    num_batches: int,
    *,
    population_loader: Iterable[Any],
    population_batches: int,
    partition: NormalizationBatch | None = None,
    evaluate: Evaluate | None = None,
    seed: int = 0,
) -> DecompositionReport:
    """Measure loss and accuracy of the box head for each set of images and kind of statistics.

    The loss under "minibatch" on training images includes the noise of training. From there to
    validation images is the generalization gap; from "minibatch" to "precise", both on validation
    images, the inconsistency of training and testing. "population" are the statistics that the
    model holds; how much worse than "precise" they are shows how good an estimate they are.

    RoIs are sampled as in training. All kinds of statistics get the same RoIs with the same
    features, since only the box head changes. A head without BatchNorm has equal rows.

    The model is left as it was: buffers, modes, hooks and random number generators.

    Args:
        model, partition, seed: as in `companion_swap`.
        loaders: name of a set of images -> its batches, of which `num_batches` are used.
        population_loader: training batches for PreciseBN, of which `population_batches` are used.
        evaluate: takes a kind of statistics and returns, for each name of `loaders`, AP and AP50 of
            the whole detector in percent, {"AP": .., "AP50": ..}.

    Raises:
        ValueError: a loader ends early, or see `probing.probing`.
    """
    require_one_process()
    precise = _precise_statistics(model, population_loader, population_batches)
    tallies: dict[tuple[str, str], _Tally] = {}
    with probing(model, partition, seed) as (head, groups), torch.no_grad():
        population = {name: value.clone() for name, value in buffers_of(head).items()}
        for split, loader in loaders.items():
            of_split = {kind: _Tally(head) for kind in STATISTICS}
            tallies |= {(split, kind): tally for kind, tally in of_split.items()}
            for step, batch in enumerate(take(loader, num_batches, f"decomposition, {split}")):
                (rois,) = head.sample(batch)
                for group in groups(rois, step):
                    of_split["minibatch"].add(rois, group, head(rois.features[group]).logits)
                if not len(rois):
                    continue
                all_rois = torch.arange(len(rois))
                for kind, buffers in (("population", {}), ("precise", precise)):
                    load_buffers(head, population | buffers)
                    with on_population_statistics(head):
                        logits = head(rois.features).logits
                    of_split[kind].add(rois, all_rois, logits)
    ap = {kind: evaluate(kind) if evaluate else {} for kind in STATISTICS}
    return DecompositionReport(
        tuple(
            DecompositionRow(
                split,
                kind,
                *tally.means(),
                ap[kind].get(split, {}).get("AP"),
                ap[kind].get(split, {}).get("AP50"),
            )
            for (split, kind), tally in tallies.items()
        )
    )


class _Tally:
    """Losses and right predictions, RoI by RoI."""

    def __init__(self, head: RoIHead) -> None:
        self._head = head
        self._rows: list[Tensor] = []

    def add(self, rois: RoIs, indices: Tensor, logits: Tensor) -> None:
        labels = rois.labels[indices]
        columns = (
            self._head.class_loss(logits, labels).double().cpu(),
            self._head.predictions(logits).cpu() == labels,
            self._head.classes(logits).cpu() == labels,
            rois.foreground[indices],
            rois.ground_truth[indices],
        )
        self._rows.append(torch.stack([column.double() for column in columns], dim=1))

    def means(self) -> tuple[float, float, float, float, float]:
        """Return the fields of a row from `loss` to `object_accuracy`; NaN without such RoIs."""
        loss, right, right_class, foreground, objects = torch.cat(
            [torch.empty(0, 5, dtype=torch.double), *self._rows]
        ).T
        return (
            float(loss.mean()),
            float(right.mean()),
            float(right[foreground > 0].mean()),
            float(loss[objects > 0].mean()),
            float(right_class[objects > 0].mean()),
        )


def _precise_statistics(model: nn.Module, loader: Iterable[Any], num_batches: int) -> Buffers:
    """Return the buffers of the box head after a PreciseBN pass; {} where it has no BN layers."""
    model = unwrapped(model)
    head = find_head(model)
    tracked = [name for name, m in head.bn_layers.items() if m.running_mean is not None]
    if not tracked:
        return {}
    with undisturbed(model):
        update_population_stats(
            model, loader, num_batches, modules=tracked, forward=head.forward_model
        )
        return {name: value.clone() for name, value in buffers_of(head).items()}


def buffers_of(head: RoIHead) -> Buffers:
    """Return the buffers of the head's BN layers by name."""
    return {
        f"{name}.{key}": buffer
        for name, layer in head.bn_layers.items()
        for key, buffer in layer.named_buffers()
    }


def load_buffers(head: RoIHead, values: Buffers) -> None:
    """Set the buffers of the head's BN layers."""
    for name, buffer in buffers_of(head).items():
        buffer.copy_(values[name])
