"""The reference of the benchmark computes what RoI shuffling by all_to_all computes."""

import torch

from bn_detect.benchmarks.all_gather import apply_after_all_gather
from bn_detect.distributed import shuffle_rois, unshuffle_rois
from bn_detect.distributed.collectives import default_group
from tests.helpers.ranks import run_ranks

COUNTS = (5, 0, 3)


def layers(x: torch.Tensor) -> torch.Tensor:
    """RoIs of a worker meet in it."""
    return (x - x.mean(0)).square().sum(-1, keepdim=True)


def _outputs_and_gradients(rank: int, world_size: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    results = []
    x = torch.randn(COUNTS[rank], 4, dtype=torch.float64, generator=g).requires_grad_()
    dy = torch.randn(COUNTS[rank], 1, dtype=torch.float64, generator=g)
    moved, plan = shuffle_rois(x, torch.Generator().manual_seed(7))
    for y in (
        unshuffle_rois(layers(moved), plan),
        apply_after_all_gather(layers, x, torch.Generator().manual_seed(7), default_group()),
    ):
        results += [y.detach(), *torch.autograd.grad(y, x, dy)]
    return results


def test_all_gather_is_all_to_all():
    for y, dx, reference_y, reference_dx in run_ranks(_outputs_and_gradients, 3):
        torch.testing.assert_close(reference_y, y)
        torch.testing.assert_close(reference_dx, dx)
