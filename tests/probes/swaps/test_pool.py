"""RoIs of several batches under one numbering."""

import torch

from bn_detect.probes.swaps.pool import Pool

from ..made_rois import labelled


def filled(labels, seed: int, value: float):
    made = labelled(labels, seed)
    made.features[:] = value + torch.arange(len(made))[:, None, None, None]
    return made


def test_several_batches():
    pool = Pool([filled([[0, 1], [2]], 0, 10.0), filled([[1, 1]], 1, 20.0)])
    assert (len(pool), pool.num_images) == (5, 3)
    assert pool.labels.tolist() == [0, 1, 2, 1, 1] and pool.image.tolist() == [0, 0, 1, 2, 2]
    picks = torch.tensor([4, 0, 3, 2])
    assert pool.features(picks).flatten().tolist() == [21, 10, 20, 12]
    assert pool.place(3) == labelled([[1, 1]], 1).place(0)
    g = torch.Generator().manual_seed(0)
    orders = {tuple(pool.shuffled(pool.labels == 1, g).tolist()) for _ in range(40)}
    assert len(orders) == 6 and set(next(iter(orders))) == {1, 3, 4}


def test_samples_of_the_same_images():
    """The second one only adds what the first has not, and comes last."""
    first, second = labelled([[0, 1, 2], [1]], 0), labelled([[0, 1, 2], [1]], 1)
    second.boxes[1], second.boxes[3] = first.boxes[2], first.boxes[0]  # the latter: another image
    pool = Pool([first, second], same_images=True)
    assert pool.num_images == 2 and pool.image.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert pool.free.tolist() == [True] * 5 + [False, True, True]
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        drawn = pool.shuffled(pool.image == 0, g).tolist()
        assert set(drawn[:3]) == {0, 1, 2} and set(drawn[3:]) == {4, 6}


def test_at_the_same_place():
    first, other = labelled([[0, 3], [0]]), labelled([[0, 3], [0]])
    assert Pool([other]).at(first, 1).tolist() == [False, True, False]
    other.boxes[0] = other.boxes[1]
    other.boxes[2] = other.boxes[1]  # in another image
    assert Pool([other]).at(first, 1).tolist() == [True, True, False]
