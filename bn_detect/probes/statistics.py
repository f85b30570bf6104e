"""Statistics probe: what the batch statistics alone tell about the images behind them."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import NormalizationBatch
from ..population.observe import watch_input
from .adapters.heads import RoIHead
from .batches import take
from .bits import bits_about
from .intervals import Array
from .probing import probing
from .rois import RoIs

PRESENCE, NUMBER = "classes present", "number of objects"
BINS = 3  # of the number of objects


@dataclass(frozen=True)
class LayerBits:
    """The bits that one layer's statistics tell about one label of an image.

    Attributes:
        name: of the layer.
        label: "classes present", averaged over the classes that some images show and others do not,
            or "number of objects", in up to three bins.
        bits: that the classifier reads, minus `null_mean`.
        null_mean, null_std: mean and standard deviation, over permutations, of the bits that it
            reads about the labels of other images. `bits` within a few `null_std` of 0 count as
            none.
        entropy: of the label in bits, the most that can be read.
    """

    name: str
    label: str
    bits: float
    null_mean: float
    null_std: float
    entropy: float


@dataclass(frozen=True)
class StatisticsReport:
    """The result of `statistics_probe`; `print` shows a table.

    Attributes:
        layers: one row for each BN layer and each label that varies over the images; none for a
            head without BN layers, which has no batch statistics.
        all_layers: one row for each label, of a classifier that sees the statistics of all layers.
            Use these to sum up: the largest of several rows is too large by chance.
        images: the number of images.
    """

    layers: tuple[LayerBits, ...]
    all_layers: tuple[LayerBits, ...]
    images: int

    def __str__(self) -> str:
        rows = [
            [
                row.name,
                row.label,
                row.bits,
                f"{row.null_mean:.3f} ± {row.null_std:.3f}",
                row.entropy,
            ]
            for row in (*self.layers, *self.all_layers)
        ]
        headers = [f"layer ({self.images} images)", "label", "bits", "null", "entropy"]
        return str(tabulate(rows, headers=headers, floatfmt=".3f"))


def statistics_probe(
    model: nn.Module,
    loader: Iterable[Any],
    num_batches: int,
    *,
    partition: NormalizationBatch | None = None,
    permutations: int = 20,
    seed: int = 0,
) -> StatisticsReport:
    """Measure how many bits about an image a linear classifier reads from the batch statistics.

    Each image is described, layer by layer, by mean and log variance of every channel in the groups
    in which its RoIs are normalized (averaged over its RoIs). A cross-validated logistic regression
    predicts from them which classes the image shows, and how many objects. The bits are the entropy
    of the label minus the cross-entropy of the predictions for held-out batches, minus the same
    with labels permuted over images. RoIs are sampled as in training.

    The model is left as it was: buffers, modes, hooks and random number generators.

    Args:
        model, loader, num_batches, partition, seed: as in `companion_swap`. At least 2 batches;
            with about 100 images, bits are right to a tenth.
        permutations: of the labels, for the null; at least 2.

    Raises:
        ValueError: `num_batches` or `permutations` is below 2, a loader ends early, or see
            `probing.probing`.
    """
    if num_batches < 2:
        raise ValueError(f"num_batches is {num_batches}; cross-validation needs at least 2")
    if permutations < 2:
        raise ValueError(f"permutations is {permutations}; the null's spread needs at least 2")
    vectors: dict[str, list[Array]] = {}
    objects: list[Tensor] = []
    batch_of: list[int] = []
    with (
        probing(model, partition, seed) as (head, groups),
        _observed(head.bn_layers) as seen,
        torch.no_grad(),
    ):
        for step, batch in enumerate(take(loader, num_batches, "statistics probe")):
            (rois,) = head.sample(batch)
            described, normalized = _image_statistics(head, groups(rois, step), rois, seen)
            for name, of_images in described.items():
                vectors.setdefault(name, []).append(of_images[normalized])
            kept = normalized.nonzero()[0]
            objects += [rois.objects[image] for image in kept]
            batch_of += [step] * len(kept)
    labels = _labels(objects) if objects else {}
    joined = {name: np.concatenate(parts) for name, parts in vectors.items()}

    def rows(name: str, x: Array) -> Iterator[LayerBits]:
        for label, columns in labels.items():
            measured = bits_about(
                x, columns, np.array(batch_of), permutations=permutations, seed=seed
            )
            if measured is not None:
                null, spread = float(measured.null.mean()), float(measured.null.std(ddof=1))
                yield LayerBits(name, label, measured.read - null, null, spread, measured.entropy)

    layers = tuple(row for name, x in joined.items() for row in rows(name, x))
    together = np.concatenate(list(joined.values()), axis=1) if joined else None
    all_layers = () if together is None else tuple(rows("all layers", together))
    return StatisticsReport(layers, all_layers, len(objects))


def _image_statistics(
    head: RoIHead, groups: list[Tensor], rois: RoIs, seen: dict[str, list[Tensor]]
) -> tuple[dict[str, Array], Array]:
    """Return the statistics that normalize the RoIs of each image.

    Returns:
        Layer -> (B, 2C) statistics, averaged over the RoIs of an image; and (B,) bool, whether any
        RoI of the image was normalized.
    """
    sums: dict[str, Tensor] = {}
    total = torch.zeros(rois.num_images, dtype=torch.float64)
    for group in groups:
        for calls in seen.values():
            calls.clear()
        head(rois.features[group])
        count = torch.bincount(rois.image[group], minlength=rois.num_images).double()
        total += count
        for name, calls in seen.items():
            if calls:
                statistics = torch.stack(calls).mean(0)
                part = count[:, None] * statistics
                sums[name] = sums[name] + part if name in sums else part
    mean = {name: (s / total.clamp(min=1)[:, None]).numpy() for name, s in sums.items()}
    return mean, (total > 0).numpy()


@contextlib.contextmanager
def _observed(layers: Mapping[str, _BatchNorm]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the batch statistics of each call of each layer.

    Yields:
        Layer name -> for each call, (2C,) mean and log variance of the channels of its input.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def see(name: str, x: Tensor) -> None:
        var, mean = torch.var_mean(x.double().transpose(0, 1).flatten(1), dim=1, correction=0)
        seen[name].append(torch.cat([mean, (var + layers[name].eps).log()]).cpu())

    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(watch_input(layer, partial(see, name)))
        yield seen


def _labels(objects: list[Tensor]) -> dict[str, Array]:
    """Return label -> (N, L) integers, from the classes of each image's objects."""
    classes = sorted({int(c) for each in objects for c in each.tolist()})
    presence = np.array([[int(c in each.tolist()) for c in classes] for each in objects])
    number = np.array([len(each) for each in objects])
    edges = np.quantile(number, np.arange(1, BINS) / BINS)
    return {
        PRESENCE: presence.reshape(len(objects), len(classes)),
        NUMBER: np.searchsorted(np.unique(edges), number, side="left")[:, None],
    }
