"""Companions that replace others: as many, of the right kind and class, from the right images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bn_detect.probes.swaps.companions import Swaps, replacements
from bn_detect.probes.swaps.pool import Pool

from ..made_rois import BACKGROUND, labelled, rois

IMAGES = st.lists(st.lists(st.booleans(), max_size=7), min_size=1, max_size=4)


@given(IMAGES, IMAGES, st.integers(0, 5), st.data())
def test_matched_in_number_and_kind(own, foreign, seed, data):
    own, foreign = rois(own), rois(foreign)
    members = torch.arange(len(own))[data.draw(st.integers(0, 3)) :: 2]
    g = torch.Generator().manual_seed(seed)
    partner = torch.randint(foreign.num_images, (own.num_images,), generator=g)
    picks = replacements(own, members, Pool([foreign]), partner, g, fill=True)
    wanted = own.foreground[members]
    if picks is None:
        assert any(
            (wanted == kind).any() and not (foreign.foreground == kind).any()
            for kind in (True, False)
        )
        return
    assert torch.equal(foreign.foreground[picks], wanted)
    for kind in (True, False):
        drawn = picks[wanted == kind]
        there = int((foreign.foreground == kind).sum())
        assert len(drawn.unique()) == min(len(drawn), there)  # again only where all are used
        for image in range(own.num_images):
            asked = int(((own.image[members] == image) & (wanted == kind)).sum())
            if (partner == partner[image]).sum() == 1:
                of_partner = (foreign.image == partner[image]) & (foreign.foreground == kind)
                from_it = foreign.image[picks[(own.image[members] == image) & (wanted == kind)]]
                assert (from_it == partner[image]).sum() >= min(asked, int(of_partner.sum()))


def test_without_filling_up_there_may_be_no_choice():
    own = rois([[True, True, False], [False]])
    again = rois([[True, False], [True, False]])
    same, g = torch.arange(2), torch.Generator()
    assert replacements(
        own, torch.tensor([0, 2, 3]), Pool([again]), same, g, fill=False
    ).tolist() == [
        0,
        1,
        3,
    ]
    assert replacements(own, torch.tensor([0, 1]), Pool([again]), same, g, fill=False) is None
    never = torch.tensor([True, False, False, False])
    found = replacements(own, torch.tensor([0]), Pool([again]), same, g, fill=False, never=never)
    assert found is None


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_random(seed):
    own, pool = rois([[True]]), Pool([rois([[True] * 50])])
    g = torch.Generator().manual_seed(seed)
    picks = {
        int(replacements(own, torch.tensor([0]), pool, torch.tensor([0]), g, fill=True))
        for _ in range(40)
    }
    assert len(picks) > 15


def swaps_of(own, again, foreign, seed: int = 0) -> Swaps:
    return Swaps(own, again, foreign, torch.Generator().manual_seed(seed), seed)


LABELS = st.lists(
    st.lists(st.integers(0, BACKGROUND), min_size=1, max_size=7), min_size=1, max_size=4
)


@given(LABELS, st.lists(LABELS, min_size=1, max_size=3), st.integers(0, 5), st.data())
def test_every_rule(own, foreign, seed, data):
    own, again = labelled(own, seed=1), labelled(own, seed=2)
    foreign = [labelled(labels, seed=3 + i) for i, labels in enumerate(foreign)]
    group = torch.arange(len(own))[data.draw(st.integers(0, 2)) :: data.draw(st.integers(1, 2))]
    index = int(data.draw(st.sampled_from(group.tolist()))) if len(group) else 0
    if len(group) < 2:
        return
    members = group[group != index]
    found = swaps_of(own, again, foreign, seed).companions(group, index)
    here = {
        "labels": own.labels[members],
        "foreground": own.foreground[members],
        "image": own.image[members],
    }
    for name, companions in found.items():
        pool, picks = companions.pool, companions.picks
        labels, foreground = pool.labels[picks], pool.foreground[picks]
        assert picks.shape == members.shape
        if name not in ("plain",):
            assert len(picks.unique()) == len(picks), name
        if name != "foreground":
            assert torch.equal(foreground, here["foreground"]), name
        if name in ("same_class", "resampled_class"):
            assert torch.equal(labels, here["labels"]), name
        if name == "other_class":
            assert not torch.isin(labels[foreground], own.labels[group]).any()
        if name in ("resampled", "resampled_class", "foreground"):
            assert torch.equal(pool.image[picks], here["image"]), name
            assert own.place(index) not in [pool.place(pick) for pick in picks.tolist()], name
    if "any_class" in found:

        def mixture(name: str) -> list[tuple[int, int]]:
            pool, picks = found[name].pool, found[name].picks
            images = pool.image[picks]
            counts = [pool.foreground[picks[images == i]] for i in images.unique()]
            return sorted((int(c.sum()), int((~c).sum())) for c in counts)

        assert mixture("any_class") == mixture("same_class")
    enough = all(
        sum(int((f.labels == label).sum()) for f in foreign) >= int((here["labels"] == label).sum())
        for label in range(BACKGROUND + 1)
    )
    assert ("same_class" in found) == (enough and "plain" in found)


def test_same_class_takes_few_images_and_only_what_is_there():
    own = labelled([[0, 0, 1, BACKGROUND]])
    foreign = [
        labelled([[0, 0, BACKGROUND], [0, 0, 1, BACKGROUND]], seed=1),
        labelled([[2]], seed=2),
    ]
    for seed in range(5):
        companions = swaps_of(own, own, foreign, seed).companions(torch.arange(4), 3)
        assert (
            companions["same_class"].pool.image[companions["same_class"].picks].tolist() == [1] * 3
        )
    # Of the class of the first companion there is one too few.
    foreign = [labelled([[0, 1, 2, 2, BACKGROUND]], seed=1)]
    companions = swaps_of(own, own, foreign).companions(torch.arange(4), 2)
    assert not {"same_class", "any_class"} & companions.keys()
    assert {"plain", "other_class", "resampled_class"} <= companions.keys()
    assert companions["plain"].filled is False


def test_plain_says_where_it_fills_up():
    own = labelled([[0, 0, 0], [1]])
    foreign = [labelled([[0, 1], [2]], seed=1)]
    swaps = swaps_of(own, own, foreign)
    assert swaps.companions(torch.arange(3), 0)["plain"].filled in (True, False)
    assert swaps.companions(torch.arange(4), 3)["plain"].filled  # 3 of an image that has 2 or 1
    assert swaps_of(own, own, [labelled([[BACKGROUND]])]).companions(torch.arange(3), 0) == {}


def test_foreground_numbers_are_those_of_a_foreign_image():
    own = labelled([[0, 0, 0, BACKGROUND, BACKGROUND, BACKGROUND]])
    again = labelled([[1, *[BACKGROUND] * 5]], seed=1)
    group = torch.arange(6)
    for number, index, expected in ((1, 0, 0), (1, 5, 1), (2, 0, 1), (4, 5, 4), (0, 0, 0)):
        foreign = [labelled([[1] * number + [BACKGROUND] * (6 - number)], seed=2)]
        companions = swaps_of(own, again, foreign).companions(group, index).get("foreground")
        if number == 0:  # plain finds no foreground at all
            assert companions is None
        else:
            assert int(companions.pool.foreground[companions.picks].sum()) == expected
    same = [labelled([[1, 1, 1, BACKGROUND, BACKGROUND, BACKGROUND]], seed=2)]
    too_many = [labelled([[1] * 6], seed=2)]  # own images have 4
    for foreign in (same, too_many):
        assert "foreground" not in swaps_of(own, again, foreign).companions(group, 5)
