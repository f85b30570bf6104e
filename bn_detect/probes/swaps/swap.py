"""Companion swap: what happens to a RoI when the others in its normalization batch change.

The causal measure of leakage: the same RoI, the same weights, other companions. A head that looks
at each RoI by itself does not notice. `companions` says which swaps there are.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import NormalizationBatch
from ..adapters.heads import Outputs, RoIHead
from ..batches import take
from ..probing import probing
from ..rois import RoIs
from .companions import Companions, Swaps
from .pool import Pool
from .report import SwapReport, swap_report
from .targets import FlipExample, Reading, Target

SHOWN = 12  # companions of each kind in an example of a flip


def companion_swap(
    model: nn.Module,
    loader: Iterable[Any],
    num_batches: int,
    *,
    partition: NormalizationBatch | None = None,
    targets_per_image: int = 4,
    foreign_batches: int = 3,
    seed: int = 0,
) -> SwapReport:
    """Measure leakage: exchange the companions of RoIs and see what becomes of their loss.

    RoIs are sampled as in training. In each image some are targets, half of them foreground where
    there are enough. The head normalizes with mini-batch statistics and runs on a target's group
    as it is, and once more for each swap of `companions` and for each of their nulls. Features come
    from the same maps throughout and the target keeps its row, so that a head without cross-talk
    changes by exactly 0.

    The swaps answer three questions, each by a difference that holds everything else fixed:

    * label leakage, any_class - same_class: does the loss depend on the companions' classes?
    * image dependence, same_class - resampled_class: does it depend on the image that companions
      come from, where their classes stay? A head may have learned to remove an image's light or
      stain: no cheating, but it fails under population statistics just as well. Where images of the
      same classes look alike in other respects, too, this is a lower bound.
    * foreground dependence, foreground - resampled_class: does it depend on how many companions are
      foreground?

    The model is left as it was: buffers, modes, hooks and random number generators.

    Args:
        model: see `adapters.find_head`.
        loader: batches with ground truth, as the model is trained with; the images of a batch are
            those that training has in one process at a time.
        num_batches: at least 2; the companions for the last batches come from the first.
        partition: the normalization batch to probe; None: as `own_batch` says.
        targets_per_image: each costs seven forwards of its group.
        foreign_batches: the number of following batches that foreign companions come from (plain:
            from the next alone). More of them let more RoIs be measured, for more memory.
        seed: of all choices.

    Raises:
        ValueError: an argument is too small, a loader ends early, or see `probing.probing`.
    """
    for name, value, least in (
        ("num_batches", num_batches, 2),  # foreign companions come from another batch
        ("targets_per_image", targets_per_image, 1),
        ("foreign_batches", foreign_batches, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    generator = torch.Generator().manual_seed(seed)
    targets: list[Target] = []
    flips: list[tuple[Target, FlipExample]] = []
    first_image = 0
    with probing(model, partition, seed) as (head, groups), torch.no_grad():
        batches = _with_foreign(head, loader, num_batches, min(foreign_batches, num_batches - 1))
        for step, (rois, again, foreign) in enumerate(batches):
            weights = _draw_targets(rois, targets_per_image, generator)
            swaps = Swaps(rois, again, foreign, generator, seed + step)
            for group in groups(rois, step):
                own: Outputs | None = None
                for index in sorted(weights.keys() & set(group.tolist())):
                    companions = swaps.companions(group, index)
                    if not companions:
                        continue
                    if own is None:
                        own = head(rois.features[group])
                    row = int((group == index).nonzero())
                    readings = {"own": _read(head, own, row, rois, index)}
                    for name, each in companions.items():
                        outputs = _among(head, rois, group, row, each)
                        readings[name] = _read(head, outputs, row, rois, index)
                    target = Target(
                        image=first_image + int(rois.image[index]),
                        label=int(rois.labels[index]),
                        foreground=bool(rois.foreground[index]),
                        weight=weights[index],
                        readings=readings,
                        filled=companions["plain"].filled,
                    )
                    targets.append(target)
                    if readings["own"].prediction != readings["plain"].prediction:
                        plain = companions["plain"]
                        flips.append((target, _flip(rois, group, index, plain, readings)))
            first_image += rois.num_images
    return swap_report(targets, flips, head.background, seed)


def _with_foreign(
    head: RoIHead, loader: Iterable[Any], num_batches: int, foreign_batches: int
) -> Iterator[tuple[RoIs, RoIs, Sequence[RoIs]]]:
    """Yield two samples of each batch's RoIs, with those of the batches after it.

    After the last batch comes the first again.
    """
    first: list[RoIs] = []
    waiting: deque[tuple[RoIs, RoIs]] = deque()

    def ready() -> tuple[RoIs, RoIs, Sequence[RoIs]]:
        return *waiting.popleft(), [rois for rois, _ in list(waiting)[:foreign_batches]]

    for batch in take(loader, num_batches, "companion swap"):
        rois, again = head.sample(batch, times=2)
        waiting.append((rois, again))
        if len(first) < foreign_batches:
            first.append(rois)
        if len(waiting) > foreign_batches:
            yield ready()
    waiting.extend((rois, rois) for rois in first)
    for _ in first:
        yield ready()


def _draw_targets(rois: RoIs, per_image: int, generator: torch.Generator) -> dict[int, float]:
    """Draw targets and map the index of each to its weight.

    The weight is the number of RoIs of its image and kind, divided by the targets among them.
    """
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


def _among(head: RoIHead, rois: RoIs, group: Tensor, row: int, companions: Companions) -> Outputs:
    """Run the head on a group in which every row but one is replaced."""
    features = rois.features[group]
    features[torch.arange(len(group)) != row] = companions.pool.features(companions.picks)
    return head(features)


def _read(head: RoIHead, outputs: Outputs, row: int, rois: RoIs, index: int) -> Reading:
    outputs = outputs.row(row)
    return Reading(
        head.class_loss(outputs.logits, rois.labels[index : index + 1]).item(),
        head.box_loss(outputs, rois, index) if rois.foreground[index] else 0.0,
        int(head.predictions(outputs.logits)),
    )


def _flip(
    rois: RoIs, group: Tensor, index: int, plain: Companions, readings: dict[str, Reading]
) -> FlipExample:
    own = Companions(Pool([rois]), group[group != index])
    shown = []
    for companions in (own, plain):
        pool, picks = companions.pool, companions.picks
        foreground_first = picks[(~pool.foreground[picks]).int().argsort(stable=True)]
        shown.append(tuple(pool.place(pick) for pick in foreground_first[:SHOWN].tolist()))
    return FlipExample(
        *rois.place(index),
        int(rois.labels[index]),
        readings["own"].prediction,
        readings["plain"].prediction,
        *shown,
    )
