"""The report of a pass: shifts, ratios and standard errors, against closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bn_detect.population import update_population_stats


def update(model: nn.Module, batches):
    return update_population_stats(model, batches, len(batches), progress=False)


def test_report():
    bn = nn.BatchNorm2d(1)
    bn.running_mean.fill_(1.0)
    bn.running_var.fill_(9.0)
    layer = update(bn, [torch.tensor([4.0, 6.0, 8.0]).view(3, 1, 1, 1)] * 2).layers[0]
    new_var = 2 * 8 / 5
    assert layer.old_mean == 1 and layer.old_var == 9
    assert layer.new_mean == 6 and layer.new_var == pytest.approx(new_var)
    assert layer.mean_shift == pytest.approx(5 / new_var**0.5)
    assert layer.log_var_ratio == pytest.approx(np.log(new_var / 9))
    assert layer.standard_error == 0


@pytest.mark.parametrize("data", ["independent", "correlated", "levels"])
def test_standard_error_predicts_the_spread(data):
    """Of the mean over repeated passes: also where values of an image are alike, and where a
    shared layer sees levels with means of their own."""
    passes, batches, images, positions = 200, 8, 2, 9
    g = torch.Generator().manual_seed(0)
    shape = (passes, batches, images, 2, 3, 3)
    x = torch.randn(shape, generator=g)
    if data == "correlated":
        x = x + 2 * torch.randn((*shape[:4], 1, 1), generator=g)

    class Model(nn.Sequential):
        def forward(self, x: Tensor) -> None:
            for level in range(3 if data == "levels" else 1):
                self[0](x + 10 * level)

    found, errors = [], []
    for each in x:
        layer = update(Model(nn.BatchNorm2d(2)), list(each)).layers[0]
        assert layer.samples == batches * images * positions * (3 if data == "levels" else 1)
        found.append(layer.new_mean)
        errors.append(layer.standard_error * layer.new_var.sqrt())
    spread = torch.stack(found).std(0)
    predicted = torch.stack(errors).square().mean(0).sqrt()
    assert (predicted / spread - 1).abs().max() < 0.2


def test_standard_error_of_one_batch_is_unknown():
    report = update(nn.BatchNorm2d(3), [torch.randn(2, 3, 4, 4)])
    assert report.layers[0].standard_error.isnan().all()
    assert "nan" in str(report)
