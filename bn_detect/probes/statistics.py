"""Statistics probe: what the batch statistics alone tell about the images they come from."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..layers import NormalizationBatch
from .adapters.heads import RoIHead
from .batches import take
from .bits import bits_about
from .probing import probing
from .rois import RoIs

PRESENCE, NUMBER = "classes present", "number of objects"
BINS = 3  # of the number of objects


@dataclass(frozen=True)
class LayerBits:
    """What one layer's statistics tell about one label of an image.

    Attributes:
        name: of the layer. label: "classes present", averaged over the classes that some images
            have and others have not, or "number of objects", in up to three bins.
        bits: read by the classifier, minus `null_mean`.
        null_mean, null_std: what it reads about the labels of other images, over permutations;
            `bits` within a few `null_std` of 0 are none.
        entropy: of the label, in bits: all there is to read.
    """

    name: str
    label: str
    bits: float
    null_mean: float
    null_std: float
    entropy: float


@dataclass(frozen=True)
class StatisticsReport:
    """What `statistics_probe` found; `print` shows a table.

    Attributes:
        layers: a row per BN layer and label that varies over the images; none for a head without
            BN layers, which has no batch statistics.
        images: how many were seen.
    """

    layers: tuple[LayerBits, ...]
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
            for row in self.layers
        ]
        headers = [f"layer ({self.images} images)", "label", "bits", "null", "of"]
        return tabulate(rows, headers=headers, floatfmt=".3f")


def statistics_probe(
    model: nn.Module,
    loader: Iterable,
    num_batches: int,
    *,
    partition: NormalizationBatch | None = None,
    permutations: int = 20,
    seed: int = 0,
) -> StatisticsReport:
    """Measure how many bits about an image a linear classifier reads from the batch statistics.

    Each image is described, layer by layer, by mean and log variance of every channel in the groups
    that its RoIs are normalized with (averaged over its RoIs). A cross-validated logistic
    regression predicts from them which classes the image shows, and how many objects. Bits are the
    entropy of the label minus the cross-entropy of the predictions for held-out batches, minus the
    same with labels permuted over images. RoIs are sampled as in training.

    The model is left as it was: buffers, modes, hooks and random number generators.

    Args:
        model, loader, num_batches, partition, seed: as in `companion_swap`. At least 2 batches;
            some 100 images make bits that can be trusted to a tenth.
        permutations: for the null, at least 2.

    Raises:
        ValueError: settings that cannot work, a loader that ends early, a model of a kind that is
            not known.
    """
    if num_batches < 2:
        raise ValueError(f"num_batches is {num_batches}; cross-validation needs at least 2")
    if permutations < 2:
        raise ValueError(f"permutations is {permutations}; the null's spread needs at least 2")
    vectors: dict[str, list[np.ndarray]] = {}
    objects: list[Tensor] = []
    of_batch: list[int] = []
    with (
        probing(model, partition, seed) as (head, groups),
        _observed(head.bn_layers) as seen,
        torch.no_grad(),
    ):
        for step, batch in enumerate(take(loader, num_batches, "statistics probe")):
            (rois,) = head.sample(batch)
            found, normalized = _image_statistics(head, groups(rois, step), rois, seen)
            for name, rows in found.items():
                vectors.setdefault(name, []).append(rows[normalized])
            kept = normalized.nonzero()[0]
            objects += [rois.objects[image] for image in kept]
            of_batch += [step] * len(kept)
    labels = _labels(objects) if objects else {}
    rows = []
    for name, parts in vectors.items():
        for label, columns in labels.items():
            found = bits_about(
                np.concatenate(parts),
                columns,
                np.array(of_batch),
                permutations=permutations,
                seed=seed,
            )
            if found is not None:
                null = float(found.null.mean())
                spread = float(found.null.std(ddof=1))
                bits = LayerBits(name, label, found.read - null, null, spread, found.entropy)
                rows.append(bits)
    return StatisticsReport(tuple(rows), len(objects))


def _image_statistics(
    head: RoIHead, groups: list[Tensor], rois: RoIs, seen: dict[str, list[Tensor]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Layer -> (B, 2C) the statistics that normalize each image's RoIs, averaged over its RoIs;
    and (B,) bool, whether there are any."""
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
    mean = {name: (each / total.clamp(min=1)[:, None]).numpy() for name, each in sums.items()}
    return mean, (total > 0).numpy()


@contextlib.contextmanager
def _observed(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Layer name -> (2C,) mean and log variance per channel of its input, call by call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def see(name: str, args: tuple, kwargs: dict) -> None:
        x = (*args, *kwargs.values())[0].double().transpose(0, 1).flatten(1)
        var, mean = torch.var_mean(x, dim=1, correction=0)
        seen[name].append(torch.cat([mean, (var + layers[name].eps).log()]).cpu())

    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: see(name, args, kwargs), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _labels(objects: list[Tensor]) -> dict[str, np.ndarray]:
    """Label -> (N, L) integers, from the classes of each image's objects."""
    classes = sorted({int(c) for each in objects for c in each.tolist()})
    presence = np.array([[int(c in each.tolist()) for c in classes] for each in objects])
    number = np.array([len(each) for each in objects])
    edges = np.quantile(number, np.arange(1, BINS) / BINS)
    return {
        PRESENCE: presence.reshape(len(objects), len(classes)),
        NUMBER: np.searchsorted(np.unique(edges), number, side="left")[:, None],
    }
