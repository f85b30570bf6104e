"""Companions that replace others: as many, of the same kind, from the right images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bn_detect.probes.companions import replacements, same_place
from bn_detect.probes.rois import RoIs


def rois(kinds: list[list[bool]], seed: int = 0) -> RoIs:
    """RoIs whose foreground flags are given image by image."""
    flat = torch.tensor([kind for image in kinds for kind in image], dtype=torch.bool)
    image = torch.tensor([i for i, each in enumerate(kinds) for _ in each], dtype=torch.int64)
    g = torch.Generator().manual_seed(seed)
    count = len(flat)
    return RoIs(
        features=torch.zeros(count, 1, 1, 1),
        image=image,
        labels=(~flat).long(),
        foreground=flat,
        boxes=torch.rand(count, 4, generator=g),
        targets=torch.zeros(count, 4),
        objects=tuple(torch.zeros(0) for _ in kinds),
        files=(None,) * len(kinds),
        scale=torch.ones(len(kinds), 2),
    )


IMAGES = st.lists(st.lists(st.booleans(), max_size=7), min_size=1, max_size=4)


@given(IMAGES, IMAGES, st.integers(0, 5), st.data())
def test_matched_in_number_and_kind(own, foreign, seed, data):
    own, foreign = rois(own), rois(foreign)
    members = torch.arange(len(own))[data.draw(st.integers(0, 3)) :: 2]
    g = torch.Generator().manual_seed(seed)
    partner = torch.randint(foreign.num_images, (own.num_images,), generator=g)
    picks = replacements(own, members, foreign, partner, g, fill=True)
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
    assert replacements(own, torch.tensor([0, 2, 3]), again, same, g, fill=False).tolist() == [
        0,
        1,
        3,
    ]
    assert replacements(own, torch.tensor([0, 1]), again, same, g, fill=False) is None
    never = torch.tensor([True, False, False, False])
    found = replacements(own, torch.tensor([0]), again, same, g, fill=False, never=never)
    assert found is None


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_random(seed):
    own, foreign = rois([[True]]), rois([[True] * 50])
    g = torch.Generator().manual_seed(seed)
    picks = {
        int(replacements(own, torch.tensor([0]), foreign, torch.tensor([0]), g, fill=True))
        for _ in range(40)
    }
    assert len(picks) > 15


def test_same_place():
    first, other = rois([[True, False], [True]]), rois([[True, False], [True]])
    assert same_place(first, 1, other).tolist() == [False, True, False]
    other.boxes[0] = other.boxes[1]
    other.boxes[2] = other.boxes[1]  # in another image
    assert same_place(first, 1, other).tolist() == [True, True, False]
