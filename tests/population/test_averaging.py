"""Averages over ranks: what counts, and what does not."""

import torch
from torch import nn

from bn_detect.layers import RoIBatchNorm2d
from bn_detect.population import average_running_statistics, statistics_are_finite
from tests.helpers.ranks import run_ranks


def on_rank(rank: int, size: int) -> dict:
    """The means of a plain layer and of one with `ema_weight`; rank 2 holds NaN in another."""
    model = nn.ModuleDict({"bn": nn.BatchNorm2d(2), "roi": RoIBatchNorm2d(2)})
    model["broken"] = nn.BatchNorm2d(2)
    for layer in model.values():
        layer.running_mean.fill_(rank)
        layer.running_var.fill_(10.0 * rank)
    model["roi"].ema_weight.fill_((0.25, 0, 0.75)[rank])  # rank 1 had no RoIs for long
    if rank == 2:
        model["broken"].running_mean[0] = torch.nan
    average_running_statistics(model)
    state = {name: layer.running_mean.tolist() for name, layer in model.items()}
    return state | {"var": model["bn"].running_var.tolist(), "ema": float(model["roi"].ema_weight)}


def test_on_three_ranks():
    expected = {"bn": [1, 1], "roi": [1.5, 1.5], "broken": [0.5, 0.5], "var": [10, 10], "ema": 1}
    assert run_ranks(on_rank, 3) == [expected] * 3


def test_one_process_keeps_its_statistics():
    layer = nn.BatchNorm2d(2)
    layer.running_mean.fill_(0.1)
    average_running_statistics(nn.Sequential(layer, nn.BatchNorm2d(2, track_running_stats=False)))
    assert torch.equal(layer.running_mean, torch.full((2,), 0.1))
    average_running_statistics(nn.Conv2d(1, 1, 1))


def test_finite_or_not():
    torch_layer, ours = nn.BatchNorm2d(2), RoIBatchNorm2d(2)
    assert statistics_are_finite(torch_layer) and statistics_are_finite(ours)
    x = torch.full((2, 2, 3, 3), torch.inf)
    torch_layer(x), ours(x)
    assert not statistics_are_finite(torch_layer) and not statistics_are_finite(ours)
    assert ours.running_mean.isfinite().all()
    ours(torch.randn(2, 2, 3, 3))
    assert statistics_are_finite(ours)
