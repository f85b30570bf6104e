"""Running a model inside the context managers leaves it as it was."""

import pytest
import torch
from torch import nn

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout
from bn_detect.population.undisturbed import kept_buffers, undisturbed

from .snapshot import Snapshot


def disturb(model: nn.Module) -> None:
    model.eval()
    model[0].momentum, model[0].counter = 0.5, 7
    model[0].running_mean += torch.rand(3)
    model[1].layout.settings = NormalizationBatch("global")
    model[1].layout.record([2, 2])


@pytest.mark.parametrize("fails", [False, True])
def test_undisturbed(fails):
    layout = RoILayout(NormalizationBatch("images"))
    model = nn.Sequential(nn.BatchNorm2d(3), RoIBatchNorm2d(3, layout=layout))
    model[0].counter = 3
    layout.record([1, 3])
    before, shuffle = Snapshot(model), layout.generator().get_state()
    try:
        with undisturbed(model):
            disturb(model)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    before.assert_unchanged()
    assert layout.settings.batch == "images" and layout.rois_per_image == (1, 3)
    assert torch.equal(layout.generator().get_state(), shuffle)


def test_kept_buffers():
    model = nn.Sequential(nn.BatchNorm2d(3))
    before, buffer = Snapshot(model), model[0].running_mean
    with pytest.raises(ValueError), kept_buffers(model):
        model(torch.ones(2, 3, 4, 4))
        assert (buffer != 0).all()
        raise ValueError
    assert model[0].running_mean is buffer
    before.assert_unchanged()
