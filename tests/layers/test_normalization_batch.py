"""The setting's errors, by message."""

import pytest

from bn_detect.layers import NormalizationBatch


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"batch": "gpu"},
            "batch is 'gpu'; it must be one of images, worker, shuffled, global",
        ),
        (
            {"exchange": "all"},
            "exchange is 'all'; it must be one of statistics, features",
        ),
        (
            {"test_stats": ""},
            "test_stats is ''; it must be one of population, minibatch",
        ),
        ({"images_per_group": 0}, "images_per_group is 0; it must be at least 1"),
        (
            {"test_images_per_group": 0},
            "test_images_per_group is 0; it must be at least 1",
        ),
        ({"images_per_group": "2"}, "images_per_group is '2'; it must be a whole number"),
        ({"images_per_group": 1.5}, "images_per_group is 1.5; it must be a whole number"),
        ({"shuffle_groups": True}, "shuffle_groups is True; it must be a whole number"),
        ({"virtual_workers": -1}, "virtual_workers is -1; it must be at least 1"),
        (
            {"shuffle_groups": -1},
            "shuffle_groups is -1; it must be a number of workers, or 0 for all",
        ),
        (
            {"batch": "shuffled", "shuffle_groups": 6, "virtual_workers": 4},
            "shuffle_groups is 6 with virtual_workers 4: a group of workers would "
            "hold a part of a process; use a divisor or a multiple of virtual_workers",
        ),
        (
            {"batch": "shuffled", "exchange": "features", "virtual_workers": 2},
            "exchange is 'features' with virtual_workers 2: features move between "
            "processes only; use exchange 'statistics', or virtual_workers 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_valid_is_named(setting, message):
    with pytest.raises(ValueError) as error:
        NormalizationBatch(**setting)
    assert str(error.value) == message


def test_features_move_only_where_rois_are_shuffled():
    assert NormalizationBatch("shuffled", exchange="features").moves_features
    assert not NormalizationBatch("shuffled").moves_features
    worker = NormalizationBatch("worker", exchange="features", virtual_workers=2)
    assert not worker.moves_features


@pytest.mark.parametrize(
    ("setting", "needed"),
    [
        ({"batch": "images"}, True),
        ({"batch": "worker"}, False),
        ({"batch": "worker", "virtual_workers": 2}, True),
        ({"batch": "shuffled", "virtual_workers": 2}, False),
        ({"batch": "global"}, False),
        ({"batch": "global", "test_stats": "minibatch"}, True),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_when_the_image_of_a_roi_is_needed(setting, needed):
    assert NormalizationBatch(**setting).needs_images is needed
