"""Adversarial companions: the most that real companions can do to a RoI, beside the average.

After the attack of DIA on test-time batches (arXiv 2301.12576), with two bounds: companions are
RoIs of the dataset, and as many of them are foreground as of those whose place they take.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ...layers import NormalizationBatch
from ..adapters.heads import RoIHead
from ..intervals import Interval, bootstrap, rate
from ..probing import probing
from ..rois import RoIs
from .pool import Pool, shuffled
from .swap import draw_targets, with_foreign

DRAWS, ROUNDS = 4, 3


@dataclass(frozen=True)
class AdversarialReport:
    """The result of `adversarial_swap`; `print` shows a table. Intervals are 95%, over images.

    Attributes:
        own: classification loss in nats under the RoIs' own companions.
        average: by how much it rises under random companions of other images.
        worst: by how much it rises under the worst that were found. Even a head that reads nothing
            useful is above 0 here: this is an upper bound and no test.
        flip_rate: share of RoIs whose predicted class changes under random companions.
        worst_flip_rate: the same under the worst.
        images, rois: how many were measured.
    """

    own: Interval
    average: Interval
    worst: Interval
    flip_rate: Interval
    worst_flip_rate: Interval
    images: int
    rois: int

    def __str__(self) -> str:
        rows = [
            ["random", self.average, self.flip_rate],
            ["worst", self.worst, self.worst_flip_rate],
        ]
        headers = [f"companions of {self.rois} RoIs of {self.images} images"]
        headers += [f"change of the loss {self.own} (nats)", "flipped"]
        return str(tabulate(rows, headers=headers, disable_numparse=True))


def adversarial_swap(
    model: nn.Module,
    loader: Iterable[Any],
    num_batches: int,
    *,
    partition: NormalizationBatch | None = None,
    targets_per_image: int = 2,
    foreign_batches: int = 3,
    seed: int = 0,
) -> AdversarialReport:
    """Search for the companions under which a RoI's loss is highest.

    Random companions, drawn 4 times from the RoIs of the following batches, give the average. From
    the worst of these draws on, 3 rounds follow the gradient: for each candidate, the gradient of
    the target's loss on the companions' features says to first order what it would do in their
    place, and those that raise the loss most are taken, as many of each kind (foreground or
    background) as before. The worst group that was seen counts; its loss is a real one. Where the
    loss grows with the mean of the group, one round finds the worst companions that there are.

    The model is left as it was: buffers, modes, hooks, gradients and random number generators.

    Args:
        model, loader, num_batches, partition, foreign_batches, seed: as in `companion_swap`.
        targets_per_image: each costs 8 forwards and 3 backwards of its group.

    Raises:
        ValueError: `num_batches` is below 2, a loader ends early, or see `probing.probing`.
    """
    if num_batches < 2:
        raise ValueError(f"num_batches is {num_batches}; foreign companions need at least 2")
    generator = torch.Generator().manual_seed(seed)
    images: list[int] = []
    weights: list[float] = []
    rows: list[list[float]] = []  # loss: own, average change, worst change; flips: average, worst
    first_image = 0
    with probing(model, partition, seed) as (head, groups), torch.no_grad():
        following = min(foreign_batches, num_batches - 1)
        batches = with_foreign(head, loader, num_batches, following)
        for step, (rois, _, foreign) in enumerate(batches):
            drawn = draw_targets(rois, targets_per_image, generator)
            pool = Pool(foreign)
            for group in groups(rois, step):
                for index in sorted(drawn.keys() & set(group.tolist())):
                    measured = _Search(head, rois, group, index, pool, generator).run()
                    if measured is not None:
                        rows.append(measured)
                        images.append(first_image + int(rois.image[index]))
                        weights.append(drawn[index])
            first_image += rois.num_images

    def column(number: int) -> list[float]:
        return [row[number] for row in rows]

    own, average, worst = (bootstrap(column(i), images, weights, seed=seed) for i in range(3))
    flips, worst_flips = (rate(column(i), images, weights, seed=seed) for i in (3, 4))
    number = len(set(images))
    return AdversarialReport(own, average, worst, flips, worst_flips, number, len(rows))


class _Search:
    """The search for the worst companions of one RoI."""

    def __init__(
        self,
        head: RoIHead,
        rois: RoIs,
        group: Tensor,
        index: int,
        pool: Pool,
        generator: torch.Generator,
    ) -> None:
        self._head, self._generator = head, generator
        self._features = rois.features[group]
        self._row = int((group == index).nonzero())
        self._label = rois.labels[index : index + 1]
        members = torch.arange(len(group)) != self._row
        foreground = rois.foreground[group]
        self._kinds = [
            ((members & (foreground == kind)).nonzero()[:, 0], pool.foreground == kind)
            for kind in (True, False)
        ]
        self._pool = pool

    def run(self) -> list[float] | None:
        """Return what `adversarial_swap` keeps; None where the pool has too few RoIs of a kind."""
        if any(len(rows) > int(there.sum()) for rows, there in self._kinds):
            return None
        own, prediction = self._loss(self._features)
        random = []
        for _ in range(DRAWS):
            drawn = [shuffled(there, self._generator)[: len(rows)] for rows, there in self._kinds]
            features = self._with(drawn)
            random.append((*self._loss(features), features))
        losses = [float(loss) for loss, _, _ in random]
        flips = [guess != prediction for _, guess, _ in random]
        worst, guess, features = max(random, key=lambda found: float(found[0]))
        for _ in range(ROUNDS):
            features = self._with(self._by_gradient(features))
            loss, found = self._loss(features)
            if loss <= worst:
                break
            worst, guess = loss, found
        average = sum(losses) / DRAWS
        flipped = float(guess != prediction)
        return [float(own), average - float(own), float(worst - own), sum(flips) / DRAWS, flipped]

    def _by_gradient(self, features: Tensor) -> list[Tensor]:
        """Return the candidates that raise the loss most to first order, for each kind of row."""
        leaf = features.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self._loss(leaf)[0], leaf)
        chosen = []
        for rows, there in self._kinds:
            candidates = there.nonzero()[:, 0]
            score = self._pool.features(candidates).flatten(1) @ gradient[rows].sum(0).flatten()
            chosen.append(
                candidates[score.cpu().argsort(descending=True, stable=True)[: len(rows)]]
            )
        return chosen

    def _with(self, picks: list[Tensor]) -> Tensor:
        features = self._features.clone()
        for (rows, _), chosen in zip(self._kinds, picks, strict=True):
            if len(rows):
                features[rows] = self._pool.features(chosen)
        return features

    def _loss(self, features: Tensor) -> tuple[Tensor, int]:
        outputs = self._head(features).row(self._row)
        loss = self._head.class_loss(outputs.logits, self._label).sum()
        return loss, int(self._head.predictions(outputs.logits))
