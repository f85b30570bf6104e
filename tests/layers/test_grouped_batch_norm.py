"""`grouped_batch_norm` on one process, against torch's BatchNorm applied group by group."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from bn_detect.layers import grouped_batch_norm

from .reference import EPS, affine, assert_same, features, group_ids, grouped_reference, outcome

SPLITS = [(5, 3), (8, 0), (0, 0), (1, 7), (3, 0, 1, 6)]
POPULATION = (
    torch.tensor([0.2, -1.0, 3.0], dtype=torch.float64),
    torch.tensor([0.5, 2.0, 1e-3], dtype=torch.float64),
)


def compare(x, weight, bias, group, num_groups, **kwargs):
    actual = outcome(grouped_batch_norm, x, weight, bias, group, num_groups, EPS, **kwargs)
    expected = outcome(grouped_reference, x, weight, bias, group, num_groups, EPS, **kwargs)
    assert_same(actual, expected)
    return actual


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("positions", [(4, 5), (7,), (), (1, 1), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("population", [None, POPULATION], ids=["alone", "population"])
def test_equals_batch_norm_on_each_group(split, positions, population):
    x = features(sum(split), 3, *positions)
    compare(x, *affine(3), group_ids(split), len(split), population=population)


@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_weight_and_bias_are_optional(has_weight, has_bias):
    weight, bias = affine(3)
    group = group_ids((4, 1, 3))
    x = features(8, 3, 2, 2)
    compare(x, weight if has_weight else None, bias if has_bias else None, group, 3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_inputs_of_several_megabytes(layout):
    x = features(40, 64, 15, 15)  # more than one chunk
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = features(80, 64, 15, 30)[::2, :, :, ::2]
    compare(x, *affine(64), group_ids((25, 0, 1, 14)), 4)


def test_statistics_carry_no_gradient_and_frozen_inputs_get_none():
    weight, bias = affine(3)
    x = features(6, 3, 2)
    y, mean, var, count = grouped_batch_norm(
        x, weight.requires_grad_(), bias, group_ids((2, 4)), 2, EPS
    )
    assert y.requires_grad and not any(t.requires_grad for t in (mean, var, count))
    y.square().sum().backward()
    assert weight.grad is not None and x.grad is None and bias.grad is None


# Second derivatives: the groups of one process only.

TINY = {
    "uneven groups, two of them empty": ((5, 3, 2, 2), (2, 0, 3, 0), None),
    "2-D": ((6, 3), (4, 2), None),
    "one RoI of one position": ((5, 3, 1, 1), (1, 4), POPULATION),
    "one RoI of one position, no population": ((5, 3), (1, 4), None),
    "no RoIs": ((0, 3, 2, 2), (0, 0), None),
}


@pytest.mark.parametrize("case", TINY.values(), ids=TINY)
def test_gradcheck_and_gradgradcheck(case):
    shape, sizes, population = case
    group = group_ids(sizes)

    def function(x, weight, bias):
        return grouped_batch_norm(x, weight, bias, group, len(sizes), 0.1, population=population)[0]

    inputs = [t.requires_grad_() for t in (features(*shape), *affine(3))]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("population", [None, POPULATION], ids=["alone", "population"])
def test_gradients_are_the_same_with_a_graph_of_them(population):
    group = group_ids((1, 4, 0, 2))
    inputs = [t.requires_grad_() for t in (features(7, 3), *affine(3))]
    y = grouped_batch_norm(*inputs, group, 4, EPS, population=population)[0]
    plain = torch.autograd.grad(y.sin().sum(), inputs, retain_graph=True)
    with_graph = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
    torch.testing.assert_close(with_graph, plain, rtol=1e-11, atol=1e-11)


# Accuracy.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [1, 7, 28])
def test_small_spread_about_a_large_mean(dtype, memory_format, size):
    sizes = (2, 50, 11)
    x = features(sum(sizes), 4, size, size, mean=100, std=1e-3).to(dtype)
    x = x.contiguous(memory_format=memory_format)
    group = group_ids(sizes)
    y, _, var, _ = grouped_batch_norm(x, None, None, group, 3, 1e-12)
    expected_y, _, expected_var, _ = grouped_reference(x.double(), None, None, group, 3, 1e-12)
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=0)  # 1e-3 is promised
    error = (y.double() - expected_y).abs().max()
    assert error < (1e-6 if dtype == torch.float64 else 0.02)  # float32 resolves x to 0.008 sigma


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs_have_statistics_in_float32(dtype):
    """The sum of a group, 1e6, is beyond float16, and its spread lost in bfloat16."""
    weight, bias = affine(5, torch.float32)
    x = features(30, 5, 28, 28, mean=60, std=4).to(dtype)
    group = group_ids((21, 1, 0, 8))
    actual = outcome(grouped_batch_norm, x, weight, bias, group, 4, EPS)
    y, mean, var, _ = grouped_batch_norm(x, weight, bias, group, 4, EPS)
    assert (y.dtype, mean.dtype, var.dtype) == (dtype, torch.float32, torch.float32)

    upcast = [t.double() for t in (x, weight, bias)]
    expected = outcome(grouped_reference, *upcast, group, 4)
    torch.testing.assert_close(actual.mean, expected.mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(actual.var, expected.var, rtol=1e-4, atol=0)
    rounding = torch.finfo(dtype).eps + 3e-6  # of y, at most 8, which then enters the gradients
    torch.testing.assert_close(actual.y, expected.y, rtol=rounding, atol=2e-5)
    torch.testing.assert_close(actual.dx, expected.dx, rtol=0, atol=20 * rounding)
    for name in ("dweight", "dbias"):
        scale = (expected.dbias.abs() + expected.dweight.abs()).max()
        error = (getattr(actual, name) - getattr(expected, name)).abs().max()
        assert error < 4 * rounding * scale, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_stays_so(dtype):
    weight, bias = affine(4, torch.float32)
    x = features(9, 4, 6, 5).to(dtype)
    group = group_ids((5, 4))
    plain = outcome(grouped_batch_norm, x, weight, bias, group, 2, EPS)
    x = x.contiguous(memory_format=torch.channels_last)
    assert_same(outcome(grouped_batch_norm, x, weight, bias, group, 2, EPS), plain, 1e-5, 1e-5)

    x.requires_grad_()
    y = grouped_batch_norm(x, weight, bias, group, 2, EPS)[0]
    (dx,) = torch.autograd.grad(y.float().square().sum(), x)
    for t in (y, dx):
        assert t.dtype == dtype
        assert t.is_contiguous(memory_format=torch.channels_last)


# Groups of a single value, and of none.


def test_a_single_value_is_normalized_with_the_population():
    weight, bias = affine(3)
    mean, var = POPULATION
    x = features(5, 3)
    group = torch.tensor([1, 1, 0, 1, 1])
    actual = compare(x, weight, bias, group, 2, population=POPULATION)
    invstd = (var + EPS).rsqrt()
    torch.testing.assert_close(actual.y[2], (x[2] - mean) * invstd * weight + bias)

    x.requires_grad_()
    dy = features(5, 3, seed=1)
    y = grouped_batch_norm(x, weight, bias, group, 2, EPS, population=POPULATION)[0]
    y.backward(dy)
    torch.testing.assert_close(x.grad[2], weight * invstd * dy[2])


def test_a_single_value_without_population_becomes_the_bias():
    weight, bias = affine(3)
    actual = compare(features(1, 3), weight, bias, torch.tensor([0]), 1)
    torch.testing.assert_close(actual.y[0], bias)
    torch.testing.assert_close(actual.dx, torch.zeros_like(actual.dx), rtol=0, atol=1e-12)


def test_empty_groups_have_zero_statistics():
    y, mean, var, count = grouped_batch_norm(
        features(0, 3, 2, 2), *affine(3), torch.empty(0, dtype=torch.int64), 2, EPS
    )
    assert y.shape == (0, 3, 2, 2)
    assert not mean.any() and not var.any() and count.tolist() == [0, 0]
