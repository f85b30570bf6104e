"""Random partitions on one process, against the per-group reference in float64."""

import pytest
import torch

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout, grouped_batch_norm

from .reference import EPS, affine, assert_same, features, grouped_reference, outcome

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = st.sampled_from([(), (1,), (2,), (1, 1), (2, 3), (2, 1, 2)])
SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)


@SETTINGS
@given(data=st.data(), positions=SHAPES, channels=st.integers(1, 4), groups=st.integers(1, 5))
def test_any_partition(data, positions, channels, groups):
    group = torch.tensor(
        data.draw(st.lists(st.integers(0, groups - 1), max_size=12)), dtype=torch.int64
    )
    weight, bias = affine(channels) if data.draw(st.booleans()) else (None, None)
    population = None
    if data.draw(st.booleans()):
        population = features(channels, 1)[:, 0], features(channels, 1, seed=1)[:, 0].square()
    x = features(len(group), channels, *positions, seed=data.draw(st.integers(0, 99)))
    args = (x, weight, bias, group, groups, EPS)
    assert_same(
        outcome(grouped_batch_norm, *args, population=population),
        outcome(grouped_reference, *args, population=population),
        rtol=1e-9,
        atol=1e-9,
    )


@SETTINGS
@given(
    images=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    virtual_workers=st.integers(1, 3),
    images_per_group=st.integers(1, 3),
    batch=st.sampled_from(["images", "worker", "global"]),
)
def test_any_split_of_images(images, virtual_workers, images_per_group, batch):
    images = images * virtual_workers
    per_worker = len(images) // virtual_workers
    key = {
        "images": lambda i: (i // per_worker, i % per_worker // images_per_group),
        "worker": lambda i: i // per_worker,
        "global": lambda i: 0,
    }[batch]
    keys = sorted({key(i) for i in range(len(images))})
    group = torch.tensor(
        [keys.index(key(i)) for i, rois in enumerate(images) for _ in range(rois)],
        dtype=torch.int64,
    )
    layout = RoILayout(NormalizationBatch(batch, images_per_group, virtual_workers))
    layout.record(images)
    x = features(len(group), 3, 2, 2)
    layer = RoIBatchNorm2d(3, affine=False, dtype=torch.float64, layout=layout)
    expected = grouped_reference(x, None, None, group, len(keys))[0]
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    assert layout.partition(len(x), x.device).num_groups == len(keys)
