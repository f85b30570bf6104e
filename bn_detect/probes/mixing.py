"""Mixed statistics: how much of the mini-batch a head should normalize with at inference.

A repair without training, after EvalNorm (arXiv 1904.06031): each BN layer normalizes with
alpha * mini-batch + (1 - alpha) * population, for mean and variance alike.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import NormalizationBatch
from ..population.bn_layers import running_statistics
from .adapters.heads import RoIHead
from .batches import take
from .intervals import Interval, bootstrap
from .probing import on_population_statistics, probing

ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # population to mini-batch statistics


@dataclass(frozen=True)
class MixedRow:
    """The box head on one set of images with one alpha.

    Attributes:
        split: name of the loader. alpha: share of the mini-batch in the statistics.
        loss: mean classification loss of a RoI in nats, with its 95% interval over images.
        accuracy: share of RoIs whose predicted class is right.
    """

    split: str
    alpha: float
    loss: Interval
    accuracy: float


@dataclass(frozen=True)
class MixingReport:
    """The result of `mixed_statistics`; `print` shows a table.

    Attributes:
        rows: one for each loader and alpha.
        best: the alpha with the least loss on the first loader, the training images.
        gain: by how much the loss on the last loader, the validation images, is lower with it than
            with population statistics; with its 95% interval over images.
    """

    rows: tuple[MixedRow, ...]
    best: float
    gain: Interval

    def __str__(self) -> str:
        rows = [[r.split, r.alpha, r.loss, f"{r.accuracy:.3f}"] for r in self.rows]
        headers = ["split", "alpha", "loss (nats)", "accuracy"]
        table = tabulate(rows, headers=headers, disable_numparse=True)
        best = f"alpha {self.best}, the best on {self.rows[0].split}, saves {self.gain} nats"
        return f"{table}\n\n{best}"


def mixed_statistics(
    model: nn.Module,
    loaders: Mapping[str, Iterable[Any]],
    num_batches: int,
    *,
    partition: NormalizationBatch | None = None,
    seed: int = 0,
) -> MixingReport:
    """Sweep alpha; choose it on training images, and see what it gives on validation images.

    RoIs are sampled as in training, and mini-batches are the groups of the normalization batch. So
    a head that reads labels still finds them at alpha 1, where RoIs at inference, most of which are
    background, have less to tell: the gain is an upper bound for such a head.

    The model is left as it was: buffers, modes, hooks and random number generators.

    Args:
        model, partition, seed: as in `companion_swap`.
        loaders: name -> batches, of which `num_batches` are used; training images first, validation
            images last.

    Raises:
        ValueError: a loader ends early, or see `probing.probing`.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    with probing(model, partition, seed) as (head, groups), torch.no_grad():
        for split, loader in loaders.items():
            columns: dict[str, list[Any]] = {"image": [], "losses": [], "right": []}
            first_image = 0
            for step, batch in enumerate(take(loader, num_batches, f"mixed statistics, {split}")):
                (rois,) = head.sample(batch)
                for group in groups(rois, step):
                    labels = rois.labels[group]
                    losses, right = [], []
                    for alpha in ALPHAS:
                        with on_population_statistics(head), _mixed(head, alpha):
                            logits = head(rois.features[group]).logits
                        losses.append(head.class_loss(logits, labels).cpu())
                        right.append(head.predictions(logits).cpu() == labels)
                    columns["image"] += (first_image + rois.image[group]).tolist()
                    columns["losses"] += torch.stack(losses, 1).tolist()
                    columns["right"] += torch.stack(right, 1).tolist()
                first_image += rois.num_images
            found[split] = columns
    rows = tuple(
        MixedRow(
            split,
            alpha,
            bootstrap([losses[i] for losses in columns["losses"]], columns["image"], seed=seed),
            sum(right[i] for right in columns["right"]) / max(1, len(columns["right"])),
        )
        for split, columns in found.items()
        for i, alpha in enumerate(ALPHAS)
    )
    best = min(rows[: len(ALPHAS)], key=lambda row: row.loss.mean).alpha
    at, last = ALPHAS.index(best), list(found.values())[-1]
    gains = [losses[0] - losses[at] for losses in last["losses"]]
    return MixingReport(rows, best, bootstrap(gains, last["image"], seed=seed))


@contextlib.contextmanager
def _mixed(head: RoIHead, alpha: float) -> Iterator[None]:
    """Let the BN layers with population statistics normalize with mixed ones."""

    def normalized(layer: _BatchNorm, args: tuple[Any, ...], kwargs: Any, output: Tensor) -> Tensor:
        x = (*args, *kwargs.values())[0]
        running_mean, running_var = running_statistics(layer)
        var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
        mean = running_mean.lerp(mean.to(running_mean), alpha)
        var = running_var.lerp(var.to(running_var), alpha)
        mixed = F.batch_norm(x, mean, var, layer.weight, layer.bias, eps=layer.eps)
        return mixed.to(output)

    with contextlib.ExitStack() as hooks:
        for layer in head.bn_layers.values():
            if layer.running_mean is not None:
                hooks.enter_context(layer.register_forward_hook(normalized, with_kwargs=True))
        yield
