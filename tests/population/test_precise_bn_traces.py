"""A pass leaves everything but the statistics as it was, also where something fails."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bn_detect.layers import RoIBatchNorm2d
from bn_detect.population.precise_bn import ROI_SOURCES

from .snapshot import Snapshot, assert_statistics
from .test_precise_bn import C, gaussian, update


class Whole(nn.Module):
    """Two stages, dropout, things that change in a forward, and a fault on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C, momentum=0.3), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(C, C, 1), RoIBatchNorm2d(C))
        self.head[2].layout.watch(self.head[0])
        self.head[0].register_forward_hook(lambda *_: None)
        self.register_buffer("replaced", torch.zeros(1))
        self.counter, self.fail_at, self.seen = 0, None, []

    def forward(self, x: Tensor) -> Tensor:
        if self.counter == self.fail_at:
            raise RuntimeError("a fault")
        self.replaced = self.replaced + 1
        self.counter += 1
        random.random(), np.random.rand(), torch.rand(1)
        x = self.stem(x)
        self.head[2].layout.record([1] * len(x))
        dropped = nn.functional.dropout(x, 0.5, self.head[0].training)
        self.seen.append((self.head[0].training, self.stem[1].training, dropped))
        return self.head[2](self.head[1](dropped))


def whole_batches(count: int = 4) -> list[Tensor]:
    return [gaussian((2, C, 4, 4), seed=i) for i in range(count)]


@pytest.mark.parametrize("source", ROI_SOURCES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fault", ["none", "forward", "loader", "short loader", "interrupt"])
def test_everything_is_as_before(source, training, fault):
    model = Whole().train(training)
    model.head[1].train(not training)  # modes may be mixed
    model(whole_batches()[0])
    model.fail_at = model.counter + 2 if fault == "forward" else None

    def loader():
        for i, batch in enumerate(whole_batches()):
            if i == 2 and fault == "loader":
                raise OSError("a broken file")
            if i == 2 and fault == "interrupt":
                raise KeyboardInterrupt
            if i == 2 and fault == "short loader":
                return
            random.random(), np.random.rand(), torch.rand(1)
            yield batch

    before, layout = Snapshot(model), model.head[2].layout
    draw = layout.generator().get_state()
    expected = {
        "none": None,
        "forward": (RuntimeError, "a fault"),
        "loader": (OSError, "a broken file"),
        "short loader": (ValueError, "the loader ended after 2 of num_iters = 4 batches; the "),
        "interrupt": (KeyboardInterrupt, None),
    }[fault]
    if expected is None:
        update(model, loader(), 4, roi_source=source)
    else:
        with pytest.raises(expected[0], match=expected[1]):
            update(model, loader(), 4, roi_source=source)
    before.assert_unchanged(statistics=fault != "none")
    assert torch.equal(layout.generator().get_state(), draw)  # shuffles go on where they were


def test_the_rest_of_the_model_does_what_its_mode_says():
    batches = whole_batches()
    for source, training in (("train", True), ("test", False)):
        for begin in (True, False):
            model = Whole().train(begin)
            model.stem[1].running_mean.fill_(5.0)
            update(model, batches, modules="head", roi_source=source)
            assert [seen[:2] for seen in model.seen] == [(training, training)] * 4
            # Without dropout the head sees what the stem, under its old statistics, gives.
            if source == "test":
                inputs = [model.head[1](model.stem.eval()(b)) for b in batches]
                assert_statistics(model.head[2], [x.detach() for x in inputs])
            assert (model.stem[1].running_mean == 5).all()
