"""The Triton kernels against the plain operations; run by test_triton_ops.py, interpreted."""

import sys

import pytest
import torch

from bn_detect.layers import grouped_batch_norm, plain_ops, triton_ops

GROUPS = 3
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other channel": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "no view over positions": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}
SHAPES = [(5, 6, 7, 7), (2, 3, 1, 1), (3, 130, 2, 3), (2, 2, 20, 30), (0, 4, 7, 7)]
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def inputs(shape, dtype, layout, mean=0.0):
    g = torch.Generator().manual_seed(0)
    x, dy = (LAYOUTS[layout]((mean + torch.randn(shape, generator=g)).to(dtype)) for _ in range(2))
    group = torch.randint(GROUPS, shape[:1], generator=g)
    tables = torch.randn(4, GROUPS, shape[1], dtype=torch.float64, generator=g)
    return x, dy, group, tables


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_as_plain(shape, layout, dtype):
    x, dy, group, (mean, a, b, c) = inputs(shape, dtype, layout)
    dy = dy.contiguous()  # strides of its own
    for function, *args in (
        ("roi_moments", x),
        ("normalize", x, group, mean, a, b[0]),
        ("normalize", x, group, mean, a, None),
        ("gradient_sums", x, dy, group, mean),
        ("input_gradient", x, dy, group, mean, a, b, c),
    ):
        ours, plain = (getattr(ops, function)(*args) for ops in (triton_ops, plain_ops))
        torch.testing.assert_close(ours, plain, **TOLERANCE[dtype])
        if isinstance(ours, torch.Tensor) and layout in ("contiguous", "channels_last"):
            assert ours.stride() == plain.stride() or not ours.numel()


def test_moments_far_from_zero():
    x = (100 + 1e-3 * torch.randn(4, 8, 14, 14, dtype=torch.float64)).float()
    mean, m2 = triton_ops.roi_moments(x)
    torch.testing.assert_close(mean, x.double().mean((2, 3)), rtol=1e-9, atol=0)
    var = x.double().var((2, 3), correction=0)
    torch.testing.assert_close(m2 / 196, var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_layer_on_them(layout, monkeypatch):
    """Forward and backward of grouped_batch_norm, float64."""
    x, dy, group, tables = inputs((6, 5, 3, 3), torch.float64, layout)
    weight, bias = tables[0, 0].clone(), tables[1, 0].clone()
    results = []
    for ops in (plain_ops, triton_ops):
        module = sys.modules[grouped_batch_norm.__module__]
        monkeypatch.setattr(module, "ops_for", lambda x, ops=ops: ops)
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y, *statistics = grouped_batch_norm(*leaves, group, GROUPS, 1e-5)
        results.append([y, *statistics, *torch.autograd.grad(y, leaves, dy)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_kernels_that_fail_are_not_used(monkeypatch, caplog):
    cpu = torch.device("cpu")
    triton_ops.works_on.cache_clear()
    assert triton_ops.works_on(cpu)  # interpreted
    triton_ops.works_on.cache_clear()
    monkeypatch.setattr(triton_ops, "normalize", lambda *args: torch.zeros(2, 5, 2, 2))
    monkeypatch.setattr(triton_ops.logger, "propagate", True)
    assert not triton_ops.works_on(cpu)
    assert "Triton kernels are not used on cpu" in caplog.text
