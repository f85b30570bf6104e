"""The functions of `plain_ops` as Triton kernels: each reads and writes every value once.

Imported where a GPU and Triton are there. One program handles a tile of channels of one RoI, so
that contiguous and channels_last tensors, and small and large RoIs, run along memory.
"""

import logging
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import plain_ops

logger = logging.getLogger(__name__)

_TILE = 2048  # values of a tile, at most


@cache
def works_on(device: torch.device) -> bool:
    """Whether the kernels compile there and agree with the plain operations; tried once.

    A driver or a Triton that does not fit costs speed then, not a training run.
    """
    try:
        x, dy = torch.randn(2, 3, 5, 2, 2, device=device)
        group = torch.tensor([0, 1, 0], device=device)
        table = torch.rand(2, 5, device=device)
        for ours, plain in (
            (roi_moments(x), plain_ops.roi_moments(x)),
            (
                normalize(x, group, table, table, table[0]),
                plain_ops.normalize(x, group, table, table, table[0]),
            ),
            (gradient_sums(x, dy, group, table), plain_ops.gradient_sums(x, dy, group, table)),
            (
                input_gradient(x, dy, group, *[table] * 4),
                plain_ops.input_gradient(x, dy, group, *[table] * 4),
            ),
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises
        logger.warning("Triton kernels are not used on %s: %s", device, error)
        return False
    return True


def roi_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `plain_ops.roi_moments`."""
    mean = x.new_zeros(x.shape[:2], dtype=torch.float64)
    m2 = torch.zeros_like(mean)
    _launch(_moments, x, mean, m2, like=(x,))
    return mean, m2


def normalize(x: Tensor, group: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """As `plain_ops.normalize`."""
    y = _empty_like(x)
    mean, scale = _tables(x, mean, scale)
    bias = torch.zeros_like(mean[0]) if bias is None else bias.to(mean).contiguous()
    _launch(_normalize, x, y, group, mean, scale, bias, like=(x, y))
    return y


def gradient_sums(x: Tensor, dy: Tensor, group: Tensor, mean: Tensor) -> Tensor:
    """As `plain_ops.gradient_sums`."""
    per_roi = x.new_zeros((len(x), 2, x.shape[1]), dtype=torch.float64)
    (table,) = _tables(x, mean)
    _launch(_gradient_sums, x, dy, per_roi, group, table, like=(x, dy))
    sums = per_roi.new_zeros((len(mean), 2, x.shape[1]))
    return sums.index_add_(0, group, per_roi)


def input_gradient(
    x: Tensor, dy: Tensor, group: Tensor, mean: Tensor, slope: Tensor, shift: Tensor, scale: Tensor
) -> Tensor:
    """As `plain_ops.input_gradient`."""
    dx = _empty_like(x)
    tables = _tables(x, mean, slope, shift, scale)
    _launch(_input_gradient, x, dy, dx, group, *tables, like=(x, dy, dx))
    return dx


def _empty_like(x: Tensor) -> Tensor:
    """A new tensor that can be viewed with its positions as one axis."""
    like = torch.empty_like(x)
    is_view = _flat(like).data_ptr() == like.data_ptr()
    return like if is_view else torch.empty_like(x, memory_format=torch.contiguous_format)


def _flat(x: Tensor) -> Tensor:
    """(R, C, positions), a copy where there is no such view."""
    return x.reshape(*x.shape[:2], x.shape[2:].numel())


def _tables(x: Tensor, *tables: Tensor) -> list[Tensor]:
    return [t.to(plain_ops.accurate(x)).contiguous() for t in tables]


def _launch(kernel, *args: Tensor, like: tuple[Tensor, ...]) -> None:
    """Run over (RoIs, blocks of channels); `like` are the tensors whose strides are passed."""
    x = like[0]
    rois, channels, positions = x.shape[0], x.shape[1], x.shape[2:].numel()
    if not x.numel():
        return
    # Over positions as one axis; a tensor that has no such view is copied, results never are.
    flat = [_flat(t) for t in like]
    named = {id(t): f for t, f in zip(like, flat, strict=True)}
    strides = [s for f in flat for s in f.stride()]
    along_channels = flat[0].stride(1) == 1 and positions > 1
    if along_channels:
        block_c = min(128, triton.next_power_of_2(channels))
        block_p = min(_TILE // block_c, triton.next_power_of_2(positions))
    else:
        block_p = min(256, triton.next_power_of_2(positions))
        block_c = min(max(1, _TILE // block_p), triton.next_power_of_2(channels))
    kernel[(rois, triton.cdiv(channels, block_c))](
        *(named.get(id(a), a) for a in args),
        channels,
        positions,
        *strides,
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )


@triton.jit
def _moments(
    x, mean, m2, C, P, sr, sc, sp, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    roi = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = x + roi * sr + c[:, None] * sc
    total = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (c[:, None] < C) & (p[None, :] < P)
        total += tl.load(at + p[None, :] * sp, mask=inside, other=0.0).to(ACC)
    center = tl.sum(total, 1) / P
    rest = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    square = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (c[:, None] < C) & (p[None, :] < P)
        d = tl.load(at + p[None, :] * sp, mask=inside, other=0.0).to(ACC) - center[:, None]
        d = tl.where(inside, d, 0.0)
        rest += d
        square += d * d
    # The mean was rounded: see plain_ops.roi_moments.
    off = tl.sum(rest, 1).to(tl.float64) / P
    spread = tl.sum(square, 1).to(tl.float64) - P * off * off
    tl.store(mean + roi * C + c, center.to(tl.float64) + off, mask=c < C)
    tl.store(m2 + roi * C + c, tl.where(spread > 0, spread, 0.0), mask=c < C)


@triton.jit
def _normalize(
    x, y, group, mean, scale, bias, C, P, sr, sc, sp, yr, yc, yp,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    roi = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.load(group + roi) * C + c
    m = tl.load(mean + row, mask=c < C, other=0.0)[:, None]
    s = tl.load(scale + row, mask=c < C, other=0.0)[:, None]
    b = tl.load(bias + c, mask=c < C, other=0.0)[:, None]
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[None, :]
        inside = (c[:, None] < C) & (p < P)
        v = tl.load(x + roi * sr + c[:, None] * sc + p * sp, mask=inside, other=0.0).to(ACC)
        v = (v - m) * s + b
        tl.store(y + roi * yr + c[:, None] * yc + p * yp, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums(
    x, dy, sums, group, mean, C, P, sr, sc, sp, dr, dc, dp,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    roi = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.load(mean + tl.load(group + roi) * C + c, mask=c < C, other=0.0)[:, None]
    total = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    moment = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[None, :]
        inside = (c[:, None] < C) & (p < P)
        v = tl.load(x + roi * sr + c[:, None] * sc + p * sp, mask=inside, other=0.0).to(ACC)
        d = tl.load(dy + roi * dr + c[:, None] * dc + p * dp, mask=inside, other=0.0).to(ACC)
        total += d
        moment += d * (v - m)  # d is 0 outside
    at = sums + roi * 2 * C + c
    tl.store(at, tl.sum(total, 1).to(tl.float64), mask=c < C)
    tl.store(at + C, tl.sum(moment, 1).to(tl.float64), mask=c < C)


@triton.jit
def _input_gradient(
    x, dy, dx, group, mean, slope, shift, scale, C, P,
    sr, sc, sp, dr, dc, dp, gr, gc, gp,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    roi = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.load(group + roi) * C + c
    m = tl.load(mean + row, mask=c < C, other=0.0)[:, None]
    a = tl.load(slope + row, mask=c < C, other=0.0)[:, None]
    b = tl.load(shift + row, mask=c < C, other=0.0)[:, None]
    s = tl.load(scale + row, mask=c < C, other=0.0)[:, None]
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[None, :]
        inside = (c[:, None] < C) & (p < P)
        v = tl.load(x + roi * sr + c[:, None] * sc + p * sp, mask=inside, other=0.0).to(ACC)
        d = tl.load(dy + roi * dr + c[:, None] * dc + p * dp, mask=inside, other=0.0).to(ACC)
        v = (v - m) * a + b + d * s
        tl.store(dx + roi * gr + c[:, None] * gc + p * gp, v.to(dx.dtype.element_ty), mask=inside)
