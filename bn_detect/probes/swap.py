"""Companion swap: what happens to a RoI when the others in its normalization batch change.

The causal measure of leakage: the same RoI, the same weights, other companions. A head that looks
at each RoI by itself does not notice.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import NormalizationBatch
from .adapters.heads import Outputs, RoIHead
from .batches import take
from .companions import replacements, same_place
from .probing import probing
from .rois import RoIs
from .swap_report import FlipExample, Place, Reading, SwapReport, Target, swap_report

SHOWN = 12  # companions of each kind in an example of a flip


def companion_swap(
    model: nn.Module,
    loader: Iterable[Any],
    num_batches: int,
    *,
    partition: NormalizationBatch | None = None,
    targets_per_image: int = 4,
    seed: int = 0,
) -> SwapReport:
    """Measure leakage: exchange the companions of RoIs for such from other images.

    RoIs are sampled as in training. Of each image some are targets, half of them foreground where
    there are enough. The head normalizes with mini-batch statistics and runs on a target's group
    three times: as it is; with every companion replaced by one of the same kind (foreground or
    background) from another image, each image of the group by one image of the next batch; and, as
    the null, with every companion replaced by one of a second sample of its own image. Features
    come from the same maps throughout, and the target keeps its row, so that a head without
    cross-talk gives exactly 0.

    The model is left as it was: buffers, modes, hooks and random number generators.

    Args:
        model: see `probing.find_head`.
        loader: batches with ground truth, as the model is trained with; the images of a batch are
            those that training has in one process at a time.
        num_batches: at least 2; the companions for the last batch are from the first.
        partition: the normalization batch to probe; None: the head's own.
        targets_per_image: cost is two forwards of a group for each.
        seed: of all choices.

    Raises:
        ValueError: settings that cannot work, a loader that ends early, a model of a kind that is
            not known.
    """
    if num_batches < 2:
        raise ValueError(
            f"num_batches is {num_batches}; it must be at least 2, for companions come from another"
        )
    if targets_per_image < 1:
        raise ValueError(f"targets_per_image is {targets_per_image}; it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    targets: list[Target] = []
    flips: list[tuple[Target, FlipExample]] = []
    first_image = 0
    with probing(model, partition, seed) as (head, groups), torch.no_grad():
        for step, samples in enumerate(_with_foreign(head, loader, num_batches)):
            rois = samples[0]
            weights = _draw_targets(rois, targets_per_image, generator)
            partner = torch.randperm(rois.num_images, generator=generator)
            for group in groups(rois, step):
                swapper = _Group(head, group, *samples, partner, generator)
                for index in sorted(weights.keys() & set(group.tolist())):
                    found = swapper.measure(index)
                    if found is None:
                        continue
                    readings, flip = found
                    target = Target(
                        first_image + int(rois.image[index]),
                        int(rois.labels[index]),
                        bool(rois.foreground[index]),
                        weights[index],
                        *readings,
                    )
                    targets.append(target)
                    if flip is not None:
                        flips.append((target, flip))
            first_image += rois.num_images
    return swap_report(targets, flips, head.background, seed)


def _with_foreign(
    head: RoIHead, loader: Iterable[Any], num_batches: int
) -> Iterator[tuple[RoIs, RoIs, RoIs]]:
    """Of each batch two samples of its RoIs, and one of the next batch's; after the last, the
    first."""
    first = before = None
    for batch in take(loader, num_batches, "companion swap"):
        rois, again = head.sample(batch, times=2)
        if before is None:
            first = rois
        else:
            yield *before, rois
        before = rois, again
    assert before is not None and first is not None
    yield *before, first


def _draw_targets(rois: RoIs, per_image: int, generator: torch.Generator) -> dict[int, float]:
    """Index -> how many RoIs it stands for: those of its image and kind, per target among them."""
    weights: dict[int, float] = {}
    for image in range(rois.num_images):
        kinds = [
            ((rois.image == image) & (rois.foreground == kind)).nonzero()[:, 0].tolist()
            for kind in (True, False)
        ]
        foreground = min(len(kinds[0]), max(-(-per_image // 2), per_image - len(kinds[1])))
        for indices, count in zip(kinds, (foreground, per_image - foreground), strict=True):
            order = torch.randperm(len(indices), generator=generator)[:count].tolist()
            weights |= {indices[i]: len(indices) / len(order) for i in order}
    return weights


class _Group:
    """The RoIs that meet in the head, and what comes out for one of them among others.

    Args:
        group: indices into `rois`. again: a second sample of the same images. foreign: of other
            images, `partner` (B,) being the one that replaces each image.
    """

    def __init__(
        self,
        head: RoIHead,
        group: Tensor,
        rois: RoIs,
        again: RoIs,
        foreign: RoIs,
        partner: Tensor,
        generator: torch.Generator,
    ) -> None:
        self._head, self._group, self._generator = head, group, generator
        self._rois, self._again, self._foreign = rois, again, foreign
        self._partner = partner % foreign.num_images
        self._own: Outputs | None = None

    def measure(
        self, index: int
    ) -> tuple[tuple[Reading, Reading, Reading | None], FlipExample | None] | None:
        """The own, swapped and resampled readings of a RoI; None without foreign companions."""
        rois, others = self._rois, self._group != index
        members = self._group[others]
        picks = replacements(
            rois, members, self._foreign, self._partner, self._generator, fill=True
        )
        if picks is None:
            return None
        if self._own is None:
            self._own = self._head(rois.features[self._group])
        row = int((~others).nonzero())
        own = self._read(self._own, row, index)
        swapped = self._among(self._foreign, picks, others, index)
        resampled = None
        same_images = torch.arange(rois.num_images)
        picks_again = replacements(
            rois,
            members,
            self._again,
            same_images,
            self._generator,
            fill=False,
            never=same_place(rois, index, self._again),
        )
        if picks_again is not None:
            resampled = self._among(self._again, picks_again, others, index)
        flip = None
        if own.prediction != swapped.prediction:
            flip = FlipExample(
                *_place(rois, index),
                int(rois.labels[index]),
                own.prediction,
                swapped.prediction,
                _places(rois, members),
                _places(self._foreign, picks),
            )
        return (own, swapped, resampled), flip

    def _among(self, pool: RoIs, picks: Tensor, others: Tensor, index: int) -> Reading:
        """The reading of a RoI that stays in its row, the other rows being `picks` of `pool`."""
        features = self._rois.features[self._group]
        features[others] = pool.features[picks]
        return self._read(self._head(features), int((~others).nonzero()), index)

    def _read(self, outputs: Outputs, row: int, index: int) -> Reading:
        outputs, rois, head = outputs.row(row), self._rois, self._head
        return Reading(
            head.class_loss(outputs.logits, rois.labels[index : index + 1]).item(),
            head.box_loss(outputs, rois, index) if rois.foreground[index] else 0.0,
            int(head.predictions(outputs.logits)),
        )


def _places(rois: RoIs, indices: Tensor) -> tuple[Place, ...]:
    foreground_first = indices[(~rois.foreground[indices]).int().argsort(stable=True)]
    return tuple(_place(rois, index) for index in foreground_first[:SHOWN].tolist())


def _place(rois: RoIs, index: int) -> Place:
    return rois.files[rois.image[index]], rois.original_box(index)
