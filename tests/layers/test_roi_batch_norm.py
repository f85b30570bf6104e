"""`RoIBatchNorm2d` on one process: torch's BatchNorm with the batch as an argument."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout

from .reference import EPS, affine, features
from .roi_layer import DOUBLE, EXACT, buffers, gradients, layer_for


@pytest.fixture
def log(caplog):
    """What the package logs, whatever other tests did to its loggers."""
    logger = logging.getLogger("bn_detect.layers.roi_batch_norm")
    logger.addHandler(caplog.handler)
    propagate, logger.propagate = logger.propagate, False
    yield caplog
    logger.propagate = propagate
    logger.removeHandler(caplog.handler)


# One batch of everything: torch.nn.BatchNorm.


@pytest.mark.parametrize("batch", ["worker", "global", "shuffled"])
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_one_worker_equals_batch_norm(batch, momentum, affine, track):
    args = (3, 1e-3, momentum, affine, track)
    theirs = nn.BatchNorm2d(*args, **DOUBLE)
    ours = RoIBatchNorm2d(*args, **DOUBLE, layout=RoILayout(NormalizationBatch(batch)))
    ours.load_state_dict(theirs.state_dict())
    for step, rois in enumerate((5, 1, 8)):
        x = features(rois, 3, 4, 2, seed=step)
        torch.testing.assert_close(gradients(ours, x), gradients(theirs, x), **EXACT)
        torch.testing.assert_close(buffers(ours), buffers(theirs), **EXACT)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), **EXACT)
    assert ours(x[:0]).shape == x[:0].shape


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 7), (6, 3, 1, 1)], ids=str)
def test_inputs_of_other_ranks_equal_batch_norm_1d(shape):
    theirs = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3, **DOUBLE)
    ours = RoIBatchNorm2d(3, **DOUBLE)
    x = features(*shape)
    torch.testing.assert_close(gradients(ours, x), gradients(theirs, x), **EXACT)
    torch.testing.assert_close(buffers(ours), buffers(theirs), **EXACT)


def test_input_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"expects \(R, 3, ...\); got \(5, 4, 2, 2\)"):
        RoIBatchNorm2d(3)(torch.zeros(5, 4, 2, 2))


def test_autocast_has_statistics_in_float32():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 3), features(6, 3, 8, 8, mean=3).float()
    ours, theirs = RoIBatchNorm2d(4), nn.BatchNorm2d(4)
    results = []
    for layer in (ours, theirs):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(conv(x))
            assert y.dtype == torch.bfloat16
            y.float().square().mul(torch.linspace(0, 1, 6)).sum().backward()
        results.append((y.float(), layer.weight.grad, conv.weight.grad))
        assert layer.running_var.dtype == torch.float32
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02)
    torch.testing.assert_close(buffers(ours), buffers(theirs), rtol=1e-5, atol=1e-5)


# Moving average.


def test_moving_average_is_the_mean_over_the_groups():
    layer = layer_for([2, 3, 4])
    x = features(9, 3, 2, 2)
    layer(x)
    groups = [part.transpose(0, 1).flatten(1) for part in x.split([2, 3, 4])]
    mean = torch.stack([g.mean(1) for g in groups]).mean(0)
    var = torch.stack([g.var(1) for g in groups]).mean(0)  # unbiased
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * var)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_moving_average_is_linear_in_the_groups(momentum):
    """It is the mean of the averages that each group alone would have, by their weights."""
    steps = [(3, 2), (0, 4), (0, 0), (5, 0), (2, 2)]
    layer = layer_for(steps[0])
    layer.momentum = momentum
    weighted_sum, weight = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([1.0, 1.0])
    weighted_sum[1] = 2.0  # mean 0 and variance 1 at first, in two groups of weight 1
    for step, rois in enumerate(steps):
        layer.layout.record(rois)
        x = features(sum(rois), 3, 2, 2, seed=step)
        layer(x)
        rate = 1 / (step + 1) if momentum is None else momentum
        weighted_sum *= 1 - rate
        weight = weight * (1 - rate)
        for g, part in enumerate(x.split(rois)):
            if len(part):
                values = part.transpose(0, 1).flatten(1)
                weighted_sum += rate * torch.stack([values.mean(1), values.var(1)])
                weight[g] += rate
        if weight.sum() > 0:
            expected = weighted_sum / weight.double().sum()
            torch.testing.assert_close(layer.running_mean, expected[0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(layer.running_var, expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", ["images", "worker", "shuffled", "global"])
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (0, 3)], ids=str)
@pytest.mark.parametrize("images", [(0, 0), ()], ids=["no RoIs", "no images"])
@pytest.mark.parametrize("virtual_workers", [1, 2])
def test_no_rois(batch, shape, images, virtual_workers):
    layer = layer_for(images, batch=batch, virtual_workers=virtual_workers)
    before = buffers(layer)
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == shape and x.grad.shape == shape
    assert not layer.weight.grad.any() and not layer.bias.grad.any()
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(layer, name), before[name])

    layer.layout.record((2, 2))  # and the next batch counts as ever
    x = features(4, *shape[1:])
    layer(x)
    assert buffers(layer)["running_mean"].isfinite().all()
    assert not torch.equal(layer.running_mean, before["running_mean"])


# A single value.


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1, 1)], ids=str)
def test_a_single_value_is_normalized_with_population_statistics(shape, log):
    layer = layer_for([1, 3])
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    layer.running_var.copy_(torch.tensor([0.3, 2.0, 1.0]))
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    x = features(*shape).requires_grad_()
    y = layer(x)
    expected = F.batch_norm(x[:1], mean, var, layer.weight, layer.bias, False, 0.0, EPS)
    torch.testing.assert_close(y[:1], expected, **EXACT)

    dy = features(*shape, seed=1)
    y.backward(dy)
    dx = dy[:1].flatten(1) * layer.weight * (var + EPS).rsqrt()
    torch.testing.assert_close(x.grad[:1].flatten(1), dx, **EXACT)

    # Only the other image's statistics enter, with half a step's weight.
    rest = x.detach()[1:].flatten(1)
    weight = 0.05 / 0.95
    torch.testing.assert_close(layer.running_mean, mean.lerp(rest.mean(0), weight))
    torch.testing.assert_close(layer.running_var, var.lerp(rest.var(0), weight))

    layer(x)
    messages = [r.getMessage() for r in log.records if r.levelno == logging.WARNING]
    assert len(messages) == 1  # once, in two forwards
    assert "single value" in messages[0] and "roi_head" in messages[0]


def test_a_single_roi_with_several_positions_is_a_batch(log):
    layer = layer_for([1])
    x = features(1, 3, 2, 2)
    theirs = nn.BatchNorm2d(3, **DOUBLE)
    theirs.weight.data, theirs.bias.data = affine(3)
    torch.testing.assert_close(gradients(layer, x), gradients(theirs, x), **EXACT)
    assert not log.records


def test_a_single_value_without_population_is_finite(log):
    layer = RoIBatchNorm2d(3, track_running_stats=False)
    y = layer(torch.randn(1, 3))
    assert torch.equal(y, layer.bias.expand(1, 3))


# Activation checkpointing.


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved tensors", "reentrant"])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
def test_activation_checkpointing_keeps_the_groups(use_reentrant, recorded):
    def run(checkpointed: bool) -> list:
        torch.manual_seed(0)
        layout = RoILayout(NormalizationBatch("shuffled", virtual_workers=4))
        first, second = (RoIBatchNorm2d(3, **DOUBLE, layout=layout) for _ in range(2))
        head = nn.Sequential(first, nn.Conv2d(3, 3, 2, **DOUBLE), nn.Tanh(), second)
        x = features(16, 3, 3, 3).requires_grad_()
        results = []
        for _ in range(2):
            if recorded:
                layout.record([4, 4, 4, 4])
            y = checkpoint(head, x, use_reentrant=use_reentrant) if checkpointed else head(x)
            y.pow(3).sum().backward()
            results += [y.detach(), *(t.grad.clone() for t in (x, *head.parameters()))]
        return results

    torch.testing.assert_close(run(True), run(False), **EXACT)


# What torch refuses, too.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_values_that_are_not_real_numbers_are_refused(dtype, training):
    layer = RoIBatchNorm2d(2).train(training)
    if not training:
        layer = RoIBatchNorm2d(2, track_running_stats=False).eval()
    with pytest.raises(RuntimeError, match=str(dtype).removeprefix("torch.")):
        layer(torch.ones(4, 2, 3, 3, dtype=dtype))


@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_an_eps_that_is_not_positive_is_refused(eps):
    layer = RoIBatchNorm2d(2, eps=eps)
    with pytest.raises(ValueError, match=f"eps is {eps}"):
        layer(torch.ones(4, 2, 3, 3))


@pytest.mark.parametrize("groups", ["worker", "images"])
def test_a_variance_beyond_half_precision_enters_as_in_torch(groups):
    x = (torch.randn(64, 2, 4, 4) * 400).half()
    layout = RoILayout(NormalizationBatch(groups))
    layout.record([64])
    ours, theirs = RoIBatchNorm2d(2, layout=layout).half(), nn.BatchNorm2d(2).half()
    ours(x), theirs(x)
    assert ours.running_var.min() > 10_000
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=2e-3, atol=0)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=2e-2, atol=2e-2)
