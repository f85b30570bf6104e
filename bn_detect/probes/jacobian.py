"""Cross-RoI Jacobian: on which RoIs' features a prediction depends, to first order."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..layers import NormalizationBatch
from .adapters.heads import RoIHead
from .batches import take
from .intervals import Interval, bootstrap
from .probing import probing
from .rois import RoIs


@dataclass(frozen=True)
class JacobianReport:
    """The result of `cross_roi_jacobian`; `print` shows a table.

    Attributes:
        itself: mean share of the squared gradient of a RoI's logit that falls on its own features;
            like the others with its 95% interval by bootstrap over images.
        same_image: the share on other RoIs of its image.
        other_images: the share on RoIs of other images; the three add up to 1.
        images, rois: numbers of those measured; a RoI whose logit has no gradient is left out.
    """

    itself: Interval
    same_image: Interval
    other_images: Interval
    images: int
    rois: int

    def __str__(self) -> str:
        rows = [
            ["itself", self.itself],
            ["other RoIs of its image", self.same_image],
            ["RoIs of other images", self.other_images],
        ]
        headers = ["squared gradient on", f"share, {self.rois} RoIs of {self.images} images"]
        return str(tabulate(rows, headers=headers, disable_numparse=True))


def cross_roi_jacobian(
    model: nn.Module,
    loader: Iterable[Any],
    num_batches: int,
    *,
    partition: NormalizationBatch | None = None,
    rois_per_batch: int = 16,
    seed: int = 0,
) -> JacobianReport:
    """Measure how the gradient of a RoI's logit spreads over the RoIs of its normalization batch.

    RoIs are sampled as in training, and the head normalizes with mini-batch statistics. The logit
    of the predicted class of some RoIs is differentiated with respect to the features of all RoIs
    of the group, by one vector-Jacobian product each. A head that does not exploit its companions
    still depends on them through the statistics; so compare with a head that shuffles.

    The model is left as it was: buffers, modes, hooks, gradients and random number generators.

    Args:
        model, loader, num_batches, partition, seed: as in `companion_swap`; one batch is enough.
        rois_per_batch: RoIs whose logit is differentiated, drawn evenly from all; each costs a
            backward pass of its group.

    Raises:
        ValueError: `rois_per_batch` is below 1, a loader ends early, or see `probing.probing`.
    """
    if rois_per_batch < 1:
        raise ValueError(f"rois_per_batch is {rois_per_batch}; it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    shares: list[list[float]] = []
    images: list[int] = []
    first_image = 0
    with probing(model, partition, seed) as (head, groups):
        for step, batch in enumerate(take(loader, num_batches, "cross-RoI Jacobian")):
            (rois,) = head.sample(batch)
            chosen = torch.randperm(len(rois), generator=generator)[:rois_per_batch]
            for group in groups(rois, step):
                rows = torch.isin(group, chosen).nonzero()[:, 0].tolist()
                for row, share in zip(rows, _shares(head, rois, group, rows), strict=True):
                    if share is not None:
                        shares.append(share)
                        images.append(first_image + int(rois.image[group[row]]))
            first_image += rois.num_images
    itself, same, other = (
        bootstrap([share[i] for share in shares], images, seed=seed) for i in range(3)
    )
    return JacobianReport(itself, same, other, len(set(images)), len(images))


def _shares(head: RoIHead, rois: RoIs, group: Tensor, rows: list[int]) -> list[list[float] | None]:
    """Return, for each row of the group, its shares (itself, its image, other images).

    None for a row whose logit has no finite gradient other than 0.
    """
    if not rows:
        return []
    features = rois.features[group].detach().requires_grad_()
    with torch.enable_grad():
        logits = head(features).logits
        if head.sigmoid:  # background has no logit
            logits = logits[:, : head.background]
        top = logits.max(dim=1).values
    image = rois.image[group]
    shares: list[list[float] | None] = []
    for row in rows:
        (gradient,) = torch.autograd.grad(top[row], features, retain_graph=row != rows[-1])
        square = gradient.double().square().flatten(1).sum(1).cpu()
        parts = torch.stack(
            [
                square[row],
                square[image == image[row]].sum() - square[row],
                square[image != image[row]].sum(),
            ]
        )
        total = parts.sum()
        finite = bool(total > 0) and bool(total.isfinite())
        shares.append((parts / total).tolist() if finite else None)
    return shares
