"""The companion swaps: which RoIs take the place of a RoI's companions in its normalization batch.

Each swap changes one thing about the companions and keeps the others. Its null shows what an
exchange of RoIs does by itself. Nulls draw from the RoI's own images: resampled as many foreground
and background RoIs of each image as before, of any classes; resampled_class as many RoIs of each
class of each image. That keeps the classes better than same_class can, which takes them from other
images: matching costs a head that reads nothing a little, too (docs/probes.md).

| swap | companions are | number of foreground | classes | from | null |
|---|---|---|---|---|---|
| plain | foreign | kept | any | one image for each image | resampled |
| same_class | foreign | kept | kept | as few images as possible | resampled_class |
| any_class | foreign | kept | any | as many images as same_class | resampled_class |
| other_class | foreign | kept | none of the group's | as few images as possible | resampled_class |
| foreground | own images' | that of a foreign image | own | the same images | resampled_class |

any_class is the control of same_class. same_class often has to mix RoIs of several images, which
averages out what is special to each of them, such as its light; any_class takes as many foreground
and background RoIs from each of as many images, and leaves only the classes to chance. plain, where
a whole image replaces a whole image, is the strongest change, but not comparable in this respect.

No swap but plain takes a RoI twice. Where a rule finds too few RoIs, the swap is not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rois import RoIs
from .pool import Pool, shuffled

NULLS = {
    "plain": "resampled",
    "same_class": "resampled_class",
    "any_class": "resampled_class",
    "other_class": "resampled_class",
    "foreground": "resampled_class",
}


@dataclass(frozen=True)
class Companions:
    """RoIs of a pool that take the place of a RoI's companions, in the order of those.

    Attributes:
        picks: (M,) indices into `pool`.
        filled: whether plain had to take RoIs of other images than one for each, or some twice.
    """

    pool: Pool
    picks: Tensor
    filled: bool = False


class Swaps:
    """The companions of the RoIs of one batch under every swap and null.

    Args:
        rois: the batch.
        again: a second sample of its RoIs.
        foreign: RoIs of other batches; plain and foreground look at the first alone.
        generator: of the choices of plain and its null.
        seed: of the other choices.
    """

    def __init__(
        self,
        rois: RoIs,
        again: RoIs,
        foreign: Sequence[RoIs],
        generator: torch.Generator,
        seed: int,
    ) -> None:
        self._rois, self._generator = rois, generator
        self._next, self._again, self._foreign = Pool(foreign[:1]), Pool([again]), Pool(foreign)
        self._own = Pool([again, rois], same_images=True)
        self._distinct = self._own.free
        partner = torch.randperm(rois.num_images, generator=generator)
        self._partner = partner % foreign[0].num_images
        self._images = torch.arange(rois.num_images)
        self._seeded = torch.Generator().manual_seed(seed)

    def companions(self, group: Tensor, index: int) -> dict[str, Companions]:
        """Return the companions of a RoI, without the swaps and nulls for which there are too few.

        Args:
            group: indices of the RoIs that meet in the head, `index` among them.
        """
        members = group[group != index]
        plain = self._plain(members)
        if plain is None:  # no foreign RoI of a kind at all
            return {}
        self._own.free = self._distinct & ~self._own.at(self._rois, index)
        same_class = self._same_class(members)
        found = {
            "plain": plain,
            "resampled": self._resampled(members, index),
            "same_class": same_class,
            "any_class": same_class and self._any_class(members, same_class.picks),
            "other_class": self._other_class(members, group),
            "foreground": self._foreground_of_partner(members, index),
            "resampled_class": self._resampled_class(members),
        }
        return {name: each for name, each in found.items() if each is not None}

    def _plain(self, members: Tensor) -> Companions | None:
        rois, pool = self._rois, self._next
        picks = replacements(rois, members, pool, self._partner, self._generator, fill=True)
        if picks is None:
            return None
        elsewhere = (pool.image[picks] != self._partner[rois.image[members]]).any()
        return Companions(pool, picks, bool(elsewhere) or len(picks.unique()) < len(picks))

    def _resampled(self, members: Tensor, index: int) -> Companions | None:
        """The null of plain: of each own image, as many RoIs of each kind from a second sample."""
        rois, pool = self._rois, self._again
        never = pool.at(rois, index)
        picks = replacements(
            rois, members, pool, self._images, self._generator, fill=False, never=never
        )
        return None if picks is None else Companions(pool, picks)

    def _same_class(self, members: Tensor) -> Companions | None:
        return self._from_few_images(members, self._rois.labels[members], self._foreign.labels)

    def _other_class(self, members: Tensor, group: Tensor) -> Companions | None:
        pool = self._foreign
        present = torch.isin(pool.labels, self._rois.labels[group].unique())
        kinds = pool.foreground.long().masked_fill(pool.foreground & present, -1)
        return self._from_few_images(members, self._rois.foreground[members].long(), kinds)

    def _from_few_images(self, members: Tensor, wanted: Tensor, kinds: Tensor) -> Companions | None:
        """Draw foreign RoIs, at each step from the image that has most of those still wanted.

        An image gives no more RoIs than an own image has among `members`, as long as there are
        others: a shuffled batch holds a few RoIs of many images, and so do its new companions.

        Args:
            members: (M,) the companions to replace.
            wanted: (M,) the kind of each of them, numbered from 0.
            kinds: (len(pool),) the kind of each foreign RoI, -1 for those that are none.
        """
        pool, number = self._foreign, int(wanted.max()) + 1
        most = int(self._rois.image[members].bincount().max())
        usable = (kinds >= 0) & (kinds < number)
        flat = (pool.image * number + kinds)[usable]
        counts = torch.bincount(flat, minlength=pool.num_images * number).view(-1, number)
        left = torch.bincount(wanted, minlength=number)
        if (counts.sum(0) < left).any():
            return None
        picks = torch.full_like(wanted, -1)
        order = torch.randperm(pool.num_images, generator=self._seeded)  # breaks ties
        unused = torch.ones_like(order)
        while left.any():
            useful = torch.minimum(counts, left).sum(1)
            if not (useful * unused).any():
                unused.fill_(1)
            image = order[(useful * unused)[order].argmax()]
            taken = self._at_most(most, torch.minimum(counts[image], left))
            for kind in taken.nonzero()[:, 0]:
                chosen = (pool.image == image) & (kinds == kind)
                chosen[picks[picks >= 0]] = False
                drawn = pool.shuffled(chosen, self._seeded)[: taken[kind]]
                rows = ((wanted == kind) & (picks < 0)).nonzero()[:, 0][: taken[kind]]
                picks[rows] = drawn
            left -= taken
            counts[image] -= taken
            unused[image] = 0
        return Companions(pool, picks)

    def _at_most(self, most: int, counts: Tensor) -> Tensor:
        """Return how many of each kind remain when `most` are drawn of (kinds,) `counts`."""
        if counts.sum() <= most:
            return counts
        kinds = torch.arange(len(counts)).repeat_interleave(counts)
        drawn = kinds[torch.randperm(len(kinds), generator=self._seeded)[:most]]
        return torch.bincount(drawn, minlength=len(counts))

    def _any_class(self, members: Tensor, same_class: Tensor) -> Companions | None:
        """Draw as many RoIs of each kind from as many images as `same_class` (M,) has."""
        pool, foreground = self._foreign, self._rois.foreground[members]
        source = pool.image[same_class]
        picks = torch.full_like(members, -1)
        images = torch.randperm(pool.num_images, generator=self._seeded).tolist()
        for model in source.unique()[torch.bincount(source)[source.unique()].argsort()].flip(0):
            rows = [((source == model) & (foreground == kind)).nonzero()[:, 0] for kind in (0, 1)]
            for image in images:
                there = [
                    pool.shuffled((pool.image == image) & (pool.foreground == kind), self._seeded)
                    for kind in (0, 1)
                ]
                if all(len(t) >= len(r) for t, r in zip(there, rows, strict=True)):
                    break
            else:
                return None
            images.remove(image)
            for t, r in zip(there, rows, strict=True):
                picks[r] = t[: len(r)]
        return Companions(pool, picks)

    def _resampled_class(self, members: Tensor) -> Companions | None:
        """The null of the others: of each own image, as many RoIs of each class as before."""
        rois, wanted = self._rois, []
        for image in rois.image[members].unique():
            of_image = rois.image[members] == image
            for label in rois.labels[members][of_image].unique():
                rows = of_image & (rois.labels[members] == label)
                there = (self._own.image == image) & (self._own.labels == label)
                wanted.append((rows.nonzero()[:, 0], there))
        return self._from_own(members, wanted)

    def _foreground_of_partner(self, members: Tensor, index: int) -> Companions | None:
        """Draw own RoIs, of which as large a share is foreground as in the image plain would take.

        None, too, where each image has that many: then nothing is left to compare.
        """
        rois, foreign, wanted = self._rois, self._next, []
        same = True
        for image in rois.image[members].unique():
            rows = (rois.image[members] == image).nonzero()[:, 0]
            of_partner = foreign.foreground[foreign.image == self._partner[image]]
            here = int(rois.image[index] == image)
            share = (len(rows) + here) / int((rois.image == image).sum())  # of the image's RoIs
            target = int(rois.foreground[index]) * here
            number = min(max(round(share * int(of_partner.sum())) - target, 0), len(rows))
            same &= number == int(rois.foreground[members][rows].sum())
            for kind, part in ((1, rows[:number]), (0, rows[number:])):
                there = (self._own.image == image) & (self._own.foreground == kind)
                wanted.append((part, there))
        return None if same else self._from_own(members, wanted)

    def _from_own(self, members: Tensor, wanted: list[tuple[Tensor, Tensor]]) -> Companions | None:
        """Draw RoIs of the own images: for some rows of `members`, from where a mask is True."""
        picks = torch.full_like(members, -1)
        for rows, there in wanted:
            drawn = self._own.shuffled(there, self._seeded)[: len(rows)]
            if len(drawn) < len(rows):
                return None
            picks[rows] = drawn
        return Companions(self._own, picks)


def replacements(
    rois: RoIs,
    members: Tensor,
    pool: Pool,
    source: Tensor,
    generator: torch.Generator,
    *,
    fill: bool,
    never: Tensor | None = None,
) -> Tensor | None:
    """Draw a RoI of `pool` for each of `members`, of the same kind (foreground or background).

    Args:
        members: (M,) indices into `rois` of the companions to replace.
        source: (B,) the image of `pool` that replaces each image of `rois`. RoIs are drawn from it
            without replacement.
        fill: where that image has too few of a kind, take them from other images of `pool`: unused
            ones if there are enough, else the same ones again.
        never: (len(pool),) bool, RoIs that must not be drawn.

    Returns:
        (M,) indices into `pool`; None where there is no such choice.
    """
    picks = torch.full_like(members, -1)
    used = torch.zeros(len(pool), dtype=torch.bool) if never is None else never.clone()
    for kind in (True, False):
        of_kind = pool.foreground == kind
        for image in rois.image[members].unique():
            wanted = (rois.image[members] == image) & (rois.foreground[members] == kind)
            there = of_kind & ~used & (pool.image == source[image])
            rows = wanted.nonzero()[:, 0]
            drawn = shuffled(there, generator)[: len(rows)]
            picks[rows[: len(drawn)]] = drawn
            used[drawn] = True
        rows = ((picks < 0) & (rois.foreground[members] == kind)).nonzero()[:, 0]
        if not len(rows):
            continue
        if not fill or not of_kind.any():
            return None
        others = shuffled(of_kind & ~used, generator)
        again = shuffled(of_kind, generator)
        again = again.repeat(-(-len(rows) // len(again)))
        drawn = torch.cat([others, again])[: len(rows)]
        picks[rows] = drawn
        used[drawn] = True
    return picks
