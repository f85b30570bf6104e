"""The Triton kernels against the plain operations; run by test_triton_ops.py, interpreted."""

import math

import pytest
import torch

from bn_detect.layers import steps
from bn_detect.layers.grouped_batch_norm import partitioned_batch_norm
from bn_detect.layers.partition import Partition
from bn_detect.layers.running_statistics import update_running_statistics
from bn_detect.layers.steps import plain_ops, triton_ops
from bn_detect.layers.steps.numbers import RunningStatistics
from tests.layers.reference import EPS, affine, assert_same, features, grouped_reference, outcome

GROUPS = 4
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other channel": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "no view over positions": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}
SHAPES = [(5, 6, 7, 7), (2, 3, 1, 1), (3, 130, 2, 3), (2, 2, 20, 30), (0, 4, 7, 7)]
ODD_SHAPES = {
    "1 channel": ((7, 1, 5, 3), 3),
    "1 position": ((9, 40, 1, 1), 4),
    "257 channels": ((5, 257, 3, 3), 2),
    "1,000 groups": ((1003, 3, 2, 2), 1000),
    "no RoIs": ((0, 5, 3, 3), 2),
    "many RoIs in a group": ((150, 35, 2, 1), 2),
}
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 3e-3, "atol": 3e-3},
}


def inputs(shape, dtype, layout):
    g = torch.Generator().manual_seed(0)
    x, dy = (LAYOUTS[layout](torch.randn(shape, generator=g).to(dtype)) for _ in range(2))
    group = torch.randint(GROUPS - 1, shape[:1], generator=g)  # one group is empty
    return x, dy.contiguous(), Partition(group, GROUPS)  # dy has strides of its own


CASES = [(shape, layout, torch.float64) for shape in SHAPES for layout in LAYOUTS]
CASES += [((3, 70, 3, 3), layout, dtype) for layout in list(LAYOUTS)[:2] for dtype in TOLERANCE]


@pytest.mark.parametrize(("shape", "layout", "dtype"), CASES, ids=str)
def test_each_step_is_that_of_plain_operations(shape, layout, dtype):
    x, dy, partition = inputs(shape, dtype, layout)
    accurate, close = plain_ops.accurate(x), TOLERANCE[dtype]
    weight, bias = affine(shape[1], accurate)
    population = (torch.full_like(weight, 0.3), torch.full_like(weight, 2.0))
    stats = plain_ops.statistics(x, partition, accurate)
    by = plain_ops.coefficients(stats, weight, EPS)
    sums = plain_ops.gradient_sums(x, dy, partition, by.center)
    some = stats.count.clamp(min=1)  # of an empty group the coefficients may be anything
    gradient = plain_ops.gradient_coefficients(sums, sums, by, some, False)[2]
    for step, *args in (
        ("statistics", x, partition, accurate),
        ("coefficients", stats, weight, EPS),
        ("coefficients", stats, None, EPS, population),
        ("normalize", x, partition.group, by, bias),
        ("normalize", x, partition.group, by, None),
        ("gradient_sums", x, dy, partition, by.center),
        ("gradient_coefficients", sums, 2 * sums, by, some, False),
        ("gradient_coefficients", sums, 2 * sums, by, some, True),
        ("input_gradient", x, dy, partition.group, by, gradient),
    ):
        ours, plain = (getattr(module, step)(*args) for module in (triton_ops, plain_ops))
        if isinstance(ours, torch.Tensor):
            ours, plain = [ours], [plain]
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, **close, check_dtype=a.dim() != 1)
            if a.shape == x.shape and layout in ("contiguous", "channels_last") and x.numel():
                assert a.stride() == b.stride()


@pytest.mark.parametrize("name", ODD_SHAPES)
def test_odd_shapes_against_float64_reference(name, monkeypatch):
    monkeypatch.setattr(steps, "ops_for", lambda x: triton_ops)
    shape, number = ODD_SHAPES[name]
    layout = "channels_last" if shape[2:] == (3, 3) else "contiguous"
    x = LAYOUTS[layout](features(*shape))
    weight, bias = affine(shape[1])
    group = torch.randint(number, shape[:1], generator=torch.Generator().manual_seed(0))
    partition = Partition(group, number)
    population = (torch.full_like(weight, 0.3), torch.full_like(weight, 2.0))
    assert_same(
        outcome(partitioned_batch_norm, x, weight, bias, partition, EPS, population),
        outcome(grouped_reference, x, weight, bias, group, number, EPS, population),
        rtol=1e-10,
        atol=1e-10,
    )


def test_moments_far_from_zero():
    x = (100 + 1e-3 * torch.randn(4, 8, 14, 14, dtype=torch.float64)).float()
    stats = triton_ops.statistics(x, Partition(torch.arange(4), 4), torch.float64)
    torch.testing.assert_close(stats.mean, x.double().mean((2, 3)), rtol=1e-9, atol=0)
    var = x.double().var((2, 3), correction=0)
    torch.testing.assert_close(stats.var, var, rtol=1e-4, atol=0)


def test_groups_that_span_ranks(monkeypatch):
    """What is packed for the reduction, with two ranks that have the same RoIs."""
    monkeypatch.setattr(triton_ops, "all_reduce_sum", lambda packed, group: packed.mul_(2))
    x, _, partition = inputs((6, 40, 3, 2), torch.float64, "contiguous")
    once = plain_ops.statistics(x, partition, torch.float64)
    spanning = Partition(partition.group, GROUPS, object())
    twice = triton_ops.statistics(x, spanning, torch.float64)
    torch.testing.assert_close(twice[:2], once[:2], rtol=1e-12, atol=1e-12)
    assert torch.equal(twice.count, 2 * once.count)


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_running_statistics(momentum, monkeypatch):
    """Usual groups; one that is empty, one of a single value, one that is not finite; none."""
    results = []
    for chosen in (plain_ops, triton_ops):
        monkeypatch.setattr(steps, "ops_for", lambda x, chosen=chosen: chosen)
        running = RunningStatistics(
            torch.zeros(70), torch.ones(70), torch.ones((), dtype=torch.float64), torch.tensor(0)
        )
        finite = []
        for rois, value in (((4, 4, 3), 0), ((0, 1, 8), 0), ((2, 3, 4), math.inf), ((0, 0, 0), 0)):
            group = torch.repeat_interleave(torch.arange(3), torch.tensor(rois))
            x = features(len(group), 70, 1).float()
            x[:1, 5] += value
            stats = plain_ops.statistics(x, Partition(group, 3), torch.float32)
            finite.append(update_running_statistics(running, stats, momentum))
        results.append([*running, *finite])
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    assert [bool(f) for f in results[1][4:]] == [True, True, False, True]


def test_kernels_that_fail_are_not_used(monkeypatch, caplog):
    cpu = torch.device("cpu")
    triton_ops.works_on.cache_clear()
    assert triton_ops.works_on(cpu)  # interpreted
    triton_ops.works_on.cache_clear()
    monkeypatch.setattr(triton_ops, "normalize", lambda *args: torch.zeros(3, 5, 2, 2))
    monkeypatch.setattr(triton_ops.logger, "propagate", True)
    assert not triton_ops.works_on(cpu)
    assert "Triton kernels are not used on cpu" in caplog.text
