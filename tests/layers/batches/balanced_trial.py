"""Use the batch of docs/extending.md in a process of its own: called by test_recipe.py."""

import sys

import torch

from bn_detect.layers import NormalizationBatch, convert_roi_batchnorm
from bn_detect.layers.convert import layouts_of
from tests.helpers.ranks import run_ranks
from tests.modeling.images import Images
from tests.modeling.small import CLASSES, KINDS, build, config, randomized


def shares_of(layout) -> torch.Tensor:
    """(groups, classes) RoIs of this process in the latest forward."""
    labels = layout._clock.latest.labels
    group = layout.partition(len(labels), labels.device).group
    groups = layout.partition(len(labels), labels.device).num_groups
    return torch.stack(
        [torch.bincount(labels[group == g], minlength=CLASSES + 1) for g in range(groups)]
    )


def train(kind: str, **settings) -> list[torch.Tensor]:
    heads = randomized(build(config(kind, batch="balanced", **settings)))
    losses = Images(range(4)).train(heads)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in heads.parameters()), kind
    return [shares_of(layout) for layout in layouts_of(heads)]


def in_one_process() -> None:
    import balanced  # the file of the recipe, which registers the batch

    for kind in KINDS:
        for shares in train(kind, virtual_workers=2):
            assert shares.shape == (2, CLASSES + 1) and shares.sum() > 8
            assert (shares[0] - shares[1]).abs().max() <= 1, (kind, shares)
    assert NormalizationBatch("balanced", virtual_workers=3).kind.cost(5, 2) == (0, 66, 60)
    assert isinstance(NormalizationBatch("balanced").kind, balanced.BalancedBatch)
    try:
        convert_roi_batchnorm(torch.nn.BatchNorm2d(3), "balanced")(torch.zeros(4, 3, 2, 2))
    except ValueError as error:
        assert "layout.record(rois_per_image, labels)" in str(error)
    else:
        raise AssertionError("labels are not known")


def on_rank(rank: int, world_size: int) -> list[torch.Tensor]:
    import balanced  # noqa: F401

    torch.manual_seed(rank)
    return train("box", virtual_workers=2)


if __name__ == "__main__":
    if sys.argv[1] == "process":
        in_one_process()
    else:
        first, second = (shares for (shares,) in run_ranks(on_rank, 2))
        assert first.shape == (4, CLASSES + 1)  # groups of both ranks
        for shares in (first, second):
            assert (shares.amax(0) - shares.amin(0)).max() <= 1
    print("balanced")
