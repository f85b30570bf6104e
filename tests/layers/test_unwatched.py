"""A layout that nobody informs: the ways of shuffling still draw the same."""

import torch

from bn_detect.layers import NormalizationBatch, RoILayout


def test_both_exchanges_draw_alike_in_every_forward():
    moving, staying = (
        RoILayout(NormalizationBatch("shuffled", exchange=exchange))
        for exchange in ("features", "statistics")
    )
    x, states = torch.randn(6, 2), []
    for iteration in (None, None, 7, None):
        if iteration is not None:
            moving.set_iteration(iteration)
            staying.set_iteration(iteration)
        moving.shuffle(x)
        for layer in (1, 2):  # the layers of one head
            moving.partition(len(x), x.device, layer=layer)
            staying.partition(len(x), x.device, layer=layer)
        assert torch.equal(moving.generator().get_state(), staying.generator().get_state())
        states.append(tuple(moving.generator().get_state().tolist()))
    assert len(set(states)) == len(states)
