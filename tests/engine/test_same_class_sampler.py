"""Mini-batches of few classes."""

from itertools import islice

import numpy as np
import pytest

from bn_detect.engine.same_class_sampler import SameClassSampler

LABELS = np.repeat([0, 1, 2, 5], [10, 20, 15, 5]).tolist()


def draw(number: int, classes: int = 1, worker_batch: int = 4, **kwargs) -> list[int]:
    return list(islice(SameClassSampler(LABELS, classes, worker_batch, **kwargs), number))


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_a_workers_batch_holds_so_many_classes_evenly(classes):
    batches = np.reshape(draw(300 * 4, classes), (300, 4))
    counts = [np.unique(np.take(LABELS, batch), return_counts=True)[1] for batch in batches]
    assert all(len(c) == classes and c.max() - c.min() <= 1 for c in counts)


def test_classes_are_drawn_anew_and_equally_often():
    labels = np.take(LABELS, draw(2000 * 4)[::4])
    shares = [np.mean(labels == label) for label in (0, 1, 2, 5)]
    assert np.allclose(shares, 0.25, atol=0.04)
    assert len(set(labels[:10].tolist())) > 1


def test_every_image_of_a_class_comes_before_one_comes_again():
    of_class = [i for i in draw(4000) if LABELS[i] == 2]
    for start in range(0, len(of_class) - 15, 15):
        assert sorted(of_class[start : start + 15]) == list(range(30, 45))
    assert of_class[:15] != of_class[15:30]


def test_a_function_of_the_seed():
    assert draw(200, seed=3) == draw(200, seed=3) != draw(200, seed=4)


def test_processes_are_virtual_workers():
    whole = np.reshape(draw(50 * 24, 2, virtual_workers=6), (50, 6, 4))
    for rank in range(3):
        own = draw(50 * 8, 2, rank=rank, world_size=3, virtual_workers=2)
        assert np.array_equal(np.reshape(own, (50, 2, 4)), whole[:, 2 * rank : 2 * rank + 2])


def test_what_a_batch_or_the_dataset_cannot_hold():
    for classes, batch in ((5, 8), (3, 2), (0, 4)):
        with pytest.raises(ValueError, match=f"CLASSES_PER_WORKER_BATCH is {classes}.*4 classes"):
            draw(1, classes, batch)
