"""The Triton kernels compile for every card that they are meant for, and spill no registers."""

import pytest
import torch

from bn_detect.benchmarks.kernels import CARDS, DTYPES, SHAPES, bytes_moved, compile_kernels

pytest.importorskip("triton")


@pytest.mark.parametrize("target", CARDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_compile_and_do_not_spill(target, dtype):
    rows = list(compile_kernels(target, DTYPES[dtype]))
    assert {row.kernel for row in rows} == set(bytes_moved(SHAPES[0], 4))
    for row in rows:
        assert row.stack == 0 and 0 < row.registers < 255, row
        assert row.shared <= 48 * 1024, row
    assert sum(row.channels_last for row in rows) == 4  # the kernels over x


def test_bytes_moved():
    """Forward and backward read or write a tensor like x 8 times, and everything else is small."""
    x = torch.Size(SHAPES[1]).numel() * 4
    moved = bytes_moved(SHAPES[1], 4)
    large = ("roi_moments", "normalize", "gradient_sums", "input_gradient")
    assert 8 * x < sum(moved[name] for name in large) < 8.3 * x
    assert sum(moved.values()) < 8.5 * x
