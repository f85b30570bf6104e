"""A batch of images is as many Detectron2 heads, each of which sees the images of one group."""

import copy

import pytest
import torch

from .images import SampledImages
from .small import bn_layers, build, config, randomized, setting_name

COUNTS = [(8, 3), (5, 1), (9, 4), (6, 2)]  # RoIs, foreground
CASES = [
    ({"batch": "images"}, [[0], [1], [2], [3]]),
    ({"batch": "images", "images_per_group": 2}, [[0, 1], [2, 3]]),
    ({"batch": "images", "images_per_group": 3}, [[0, 1, 2], [3]]),
    ({"batch": "images", "images_per_group": 3, "virtual_workers": 2}, [[0, 1], [2, 3]]),
    ({"batch": "images", "images_per_group": 1, "virtual_workers": 2}, [[0], [1], [2], [3]]),
    ({"batch": "worker"}, [[0, 1, 2, 3]]),
    ({"batch": "worker", "virtual_workers": 2}, [[0, 1], [2, 3]]),
    ({"batch": "worker", "virtual_workers": 4}, [[0], [1], [2], [3]]),
    ({"batch": "global", "virtual_workers": 2}, [[0, 1, 2, 3]]),
]


def _step(heads, numbers, counts=COUNTS):
    """Gradients of parameters and of the features of each image, and running statistics."""
    images = SampledImages(numbers, counts, dtype=torch.float64)
    images.weighted_loss(images.train(heads), SampledImages(range(4), counts)).backward()
    gradients = {n: p.grad for n, p in heads.named_parameters() if p.requires_grad}
    features = {
        (name, number): images.features[name].grad[i]
        for name in heads.in_features
        for i, number in enumerate(numbers)
    }
    running = {
        (name, buffer): getattr(bn, buffer)
        for name, bn in bn_layers(heads).items()
        for buffer in ("running_mean", "running_var")
    }
    return gradients, features, running


@pytest.mark.parametrize("kind", ["mask", "keypoint", "cascade", "c4"])
@pytest.mark.parametrize(
    ("setting", "groups"), CASES, ids=lambda x: setting_name(x) if isinstance(x, dict) else ""
)
def test_groups_of_images_are_separate_heads(kind, setting, groups):
    heads = randomized(build(config(kind, **setting))).double()
    # The parent's keypoint head has no norm: ours, with these images alone, stands for it.
    parent = build(config(kind, ours=kind == "keypoint")).double()
    parent.load_state_dict(heads.state_dict())
    gradients, features, running = _step(heads, range(4))

    parts = [_step(copy.deepcopy(parent), group) for group in groups]
    sums = {n: sum(part[0][n] for part in parts) for n in gradients}
    means = {k: sum(part[2][k] for part in parts) / len(parts) for k in running}
    each = {k: v for part in parts for k, v in part[1].items()}
    tolerance = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(gradients, sums, **tolerance)
    torch.testing.assert_close(features, each, **tolerance)
    torch.testing.assert_close(running, means, **tolerance)
