"""The Triton kernels that `triton_ops` launches, one for each step of the layer.

Kernels over x run one program for a tile of channels of one RoI, so that contiguous and
channels_last tensors, and small and large RoIs, run along memory. Kernels over groups run one
program for a tile of channels of one group, or of all groups. A sum belongs to one program, and the
order of its terms is fixed: no kernel uses atomics.

ACC is the dtype for single values, C the channels, P the positions, G the groups; triples such as
(sr, sc, sp) are strides over RoIs, channels and positions.
"""

import triton
import triton.language as tl


@triton.jit
def roi_moments(
    x, out, C, P, sr, sc, sp, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Mean and M2 of each RoI and channel, into out (R, 2, C) float64; see plain_ops."""
    roi = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = x + roi * sr + c[:, None] * sc
    first = tl.load(x + roi * sr + c * sc, mask=c < C, other=0.0).to(ACC)
    total, square = tl.zeros((BLOCK_C, BLOCK_P), ACC), tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (c[:, None] < C) & (p[None, :] < P)
        d = tl.load(at + p[None, :] * sp, mask=inside, other=0.0).to(ACC) - first[:, None]
        d = tl.where(inside, d, 0.0)
        total += d
        square += d * d
    off = tl.sum(total, 1).to(tl.float64)
    spread = tl.sum(square, 1).to(tl.float64) - off * off / P
    to = out + roi * 2 * C + c
    tl.store(to, first.to(tl.float64) + off / P, mask=c < C)
    tl.store(to + C, tl.where(spread < 0, 0.0, spread), mask=c < C)  # NaN is kept


@triton.jit
def merge_moments(
    moments, order, starts, sizes, mean, var, count, packed, C, P,
    SPANS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merge the moments (R, 2, C) of the RoIs of each group by Chan's formula.

    Into mean, var (G, C) and count (G,); or, where groups span ranks, into packed: sums
    (G, C), sums of squares (G, C) and values per channel (G,), float64.
    """
    g = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    first, size = tl.load(starts + g), tl.load(sizes + g)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float64)
    for start in range(0, size, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)[:, None]
        inside = (r < size) & (c < C)
        roi = tl.load(order + first + r, mask=r < size, other=0)
        total += tl.load(moments + roi * 2 * C + c, mask=inside, other=0.0)
    n = size.to(tl.float64)
    m = tl.sum(total, 0)[None, :] / tl.where(size > 0, n, 1.0)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float64)
    for start in range(0, size, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)[:, None]
        inside = (r < size) & (c < C)
        roi = tl.load(order + first + r, mask=r < size, other=0)
        at = moments + roi * 2 * C + c
        d = tl.where(inside, tl.load(at, mask=inside, other=0.0) - m, 0.0)
        total += tl.load(at + C, mask=inside, other=0.0) + d * d * P
    m2 = tl.sum(total, 0)[None, :]
    at = g * C + c
    n *= P
    if SPANS:
        groups = tl.num_programs(0).to(tl.int64)
        tl.store(packed + at, n * m, mask=c < C)
        tl.store(packed + groups * C + at, m2 + n * m * m, mask=c < C)
        tl.store(packed + 2 * groups * C + g, n)
    else:
        tl.store(mean + at, m.to(mean.dtype.element_ty), mask=c < C)
        v = m2 / tl.where(n > 0, n, 1.0)
        tl.store(var + at, v.to(var.dtype.element_ty), mask=c < C)
        tl.store(count + g, size * P)


@triton.jit
def unpack_moments(packed, mean, var, count, C, BLOCK_C: tl.constexpr):
    """Turn the reduced sums of `merge_moments` into mean and var (G, C) and count (G,)."""
    g, groups = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = g * C + c
    n = tl.load(packed + 2 * groups * C + g)
    divisor = tl.where(n > 0, n, 1.0)
    m = tl.load(packed + at, mask=c < C, other=0.0) / divisor
    v = tl.load(packed + groups * C + at, mask=c < C, other=0.0) / divisor - m * m
    v = tl.where(v < 0, 0.0, v)
    tl.store(mean + at, m.to(mean.dtype.element_ty), mask=c < C)
    tl.store(var + at, v.to(var.dtype.element_ty), mask=c < C)
    tl.store(count + g, (n + 0.5).to(tl.int64))


@triton.jit
def coefficients(
    mean, var, count, weight, pop_mean, pop_var, center, invstd, scale, C,
    EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_POPULATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Center, 1 / sqrt(var + eps) and that times the weight, of each group; (G, C) each."""
    g = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = g * C + c
    v = tl.load(var + at, mask=c < C, other=1.0)
    if HAS_POPULATION:
        single = tl.load(count + g) == 1
        v = tl.where(single, tl.load(pop_var + c, mask=c < C, other=1.0).to(v.dtype), v)
        m = tl.load(mean + at, mask=c < C, other=0.0)
        m = tl.where(single, tl.load(pop_mean + c, mask=c < C, other=0.0).to(m.dtype), m)
        tl.store(center + at, m, mask=c < C)
    s = 1 / tl.sqrt(v + EPS)
    tl.store(invstd + at, s, mask=c < C)
    if HAS_WEIGHT:
        s = s * tl.load(weight + c, mask=c < C, other=0.0).to(s.dtype)
        tl.store(scale + at, s, mask=c < C)


@triton.jit
def normalize(
    x, y, group, center, scale, bias, C, P, sr, sc, sp, yr, yc, yp,
    HAS_BIAS: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """(x - center) * scale + bias with the numbers of each RoI's group, into y."""
    roi = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.load(group + roi) * C + c
    m = tl.load(center + row, mask=c < C, other=0.0)[:, None]
    s = tl.load(scale + row, mask=c < C, other=0.0)[:, None]
    b = tl.zeros((BLOCK_C, 1), ACC)
    if HAS_BIAS:
        b = tl.load(bias + c, mask=c < C, other=0.0).to(ACC)[:, None]
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[None, :]
        inside = (c[:, None] < C) & (p < P)
        v = tl.load(x + roi * sr + c[:, None] * sc + p * sp, mask=inside, other=0.0).to(ACC)
        v = (v - m) * s + b
        tl.store(y + roi * yr + c[:, None] * yc + p * yp, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gradient_sums(
    x, dy, out, group, center, C, P, sr, sc, sp, dr, dc, dp,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sums of dy and of dy * (x - center) over each RoI, into out (R, 2, C) float64."""
    roi = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.load(center + tl.load(group + roi) * C + c, mask=c < C, other=0.0)[:, None]
    total, moment = tl.zeros((BLOCK_C, BLOCK_P), ACC), tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[None, :]
        inside = (c[:, None] < C) & (p < P)
        v = tl.load(x + roi * sr + c[:, None] * sc + p * sp, mask=inside, other=0.0).to(ACC)
        d = tl.load(dy + roi * dr + c[:, None] * dc + p * dp, mask=inside, other=0.0).to(ACC)
        total += d
        moment += tl.where(inside, d * (v - m), 0.0)
    at = out + roi * 2 * C + c
    tl.store(at, tl.sum(total, 1).to(tl.float64), mask=c < C)
    tl.store(at + C, tl.sum(moment, 1).to(tl.float64), mask=c < C)


@triton.jit
def segment_sum(values, order, starts, sizes, out, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum the rows (R, C) of each group in the order given, into out (G, C); float64."""
    g = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    first, size = tl.load(starts + g), tl.load(sizes + g)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float64)
    for start in range(0, size, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)[:, None]
        roi = tl.load(order + first + r, mask=r < size, other=0)
        total += tl.load(values + roi * C + c, mask=(r < size) & (c < C), other=0.0)
    tl.store(out + g * C + c, tl.sum(total, 0)[None, :], mask=c < C)


@triton.jit
def gradient_coefficients(
    local, total, count, invstd, scale, dweight, dbias, out, G, C,
    KEEP_SINGLE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Shift and slope of each group into out (G, 2, C), and the gradients of weight and bias (C,).

    Sums are (G, 2, C) float64: of this process, and of all ranks of the groups.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    dw, db = tl.zeros((BLOCK_G, BLOCK_C), tl.float64), tl.zeros((BLOCK_G, BLOCK_C), tl.float64)
    for start in range(0, G, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)[:, None].to(tl.int64)
        inside = (g < G) & (c < C)
        s = tl.load(invstd + g * C + c, mask=inside, other=0.0).to(tl.float64)
        at = g * 2 * C + c
        db += tl.load(local + at, mask=inside, other=0.0)
        dw += tl.load(local + at + C, mask=inside, other=0.0) * s
        n = tl.load(count + g, mask=g < G, other=1)
        k = tl.load(scale + g * C + c, mask=inside, other=0.0).to(tl.float64)
        k = k / tl.where(n > 0, n, 1).to(tl.float64)
        if KEEP_SINGLE:
            k = tl.where(n == 1, 0.0, k)
        shift = k * tl.load(total + at, mask=inside, other=0.0)
        slope = k * s * s * tl.load(total + at + C, mask=inside, other=0.0)
        tl.store(out + at, shift.to(out.dtype.element_ty), mask=inside)
        tl.store(out + at + C, slope.to(out.dtype.element_ty), mask=inside)
    tl.store(dbias + c, tl.sum(db, 0)[None, :].to(dbias.dtype.element_ty), mask=c < C)
    tl.store(dweight + c, tl.sum(dw, 0)[None, :].to(dweight.dtype.element_ty), mask=c < C)


@triton.jit
def input_gradient(
    x, dy, dx, group, center, scale, gradient, C, P, sr, sc, sp, dr, dc, dp, gr, gc, gp,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dy * scale - (x - center) * slope - shift with the numbers of each RoI's group, into dx."""
    roi = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    g = tl.load(group + roi)
    m = tl.load(center + g * C + c, mask=c < C, other=0.0)[:, None]
    s = tl.load(scale + g * C + c, mask=c < C, other=0.0)[:, None]
    shift = tl.load(gradient + g * 2 * C + c, mask=c < C, other=0.0)[:, None]
    slope = tl.load(gradient + g * 2 * C + C + c, mask=c < C, other=0.0)[:, None]
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[None, :]
        inside = (c[:, None] < C) & (p < P)
        v = tl.load(x + roi * sr + c[:, None] * sc + p * sp, mask=inside, other=0.0).to(ACC)
        d = tl.load(dy + roi * dr + c[:, None] * dc + p * dp, mask=inside, other=0.0).to(ACC)
        v = d * s - ((v - m) * slope + shift)
        tl.store(dx + roi * gr + c[:, None] * gc + p * gp, v.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def begin_update(
    mean, var, count, weight, batches, usable, step, finite, like, G, C,
    MOMENTUM: tl.constexpr, CUMULATIVE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Which groups enter the moving average, and its weight; one program.

    Into usable (G,) float64, 1 or 0; step (2,) float64, the weight of the new statistics and the
    number of usable groups; finite (); and in place the layer's weight and number of batches.
    like: a buffer of the dtype in which statistics must be finite.
    """
    number, bad = 0.0, 0
    for start in range(0, G, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)[:, None].to(tl.int64)
        n = tl.load(count + g, mask=g < G, other=0).to(tl.float64)
        factor = n / tl.where(n > 1, n - 1, 1.0)
        wrong = tl.zeros((BLOCK_G, 1), tl.int32)
        for begin in range(0, C, BLOCK_C):
            c = begin + tl.arange(0, BLOCK_C)[None, :]
            inside = (g < G) & (c < C)
            m = tl.load(mean + g * C + c, mask=inside, other=0.0)
            v = tl.load(var + g * C + c, mask=inside, other=0.0) * factor
            m, v = m.to(like.dtype.element_ty), v.to(like.dtype.element_ty)
            ok = (tl.abs(m) < float("inf")) & (tl.abs(v) < float("inf"))
            wrong += tl.sum(tl.where(ok, 0, 1), 1)[:, None]
        enters = tl.where((wrong == 0) & (n > 1), 1.0, 0.0)
        tl.store(usable + g, enters, mask=g < G)
        number += tl.sum(enters)
        bad += tl.sum(wrong)
    tl.store(finite, bad == 0)
    b = tl.load(batches) + 1
    tl.store(batches, b)
    rate = tl.full((), MOMENTUM, tl.float64)
    if CUMULATIVE:
        rate = 1.0 / b.to(tl.float64)
    new = rate * number.to(tl.float64) / G
    total = (1 - rate) * tl.load(weight).to(tl.float64) + new
    tl.store(weight, total)
    tl.store(step, tl.where(total > 0, new / tl.where(total > 0, total, 1.0), 0.0))
    tl.store(step + 1, number.to(tl.float64))


@triton.jit
def finish_update(
    mean, var, count, usable, step, running_mean, running_var, G, C,
    BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Move the running mean and variance (C,) towards the mean over the usable groups, in place."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    m, v = tl.zeros((BLOCK_G, BLOCK_C), tl.float64), tl.zeros((BLOCK_G, BLOCK_C), tl.float64)
    for start in range(0, G, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)[:, None].to(tl.int64)
        n = tl.load(count + g, mask=g < G, other=0).to(tl.float64)
        factor = n / tl.where(n > 1, n - 1, 1.0)
        enters = (tl.load(usable + g, mask=g < G, other=0.0) > 0) & (c < C)
        m += tl.load(mean + g * C + c, mask=enters, other=0.0).to(tl.float64)
        v += tl.load(var + g * C + c, mask=enters, other=0.0).to(tl.float64) * factor
    rate, number = tl.load(step), tl.load(step + 1)
    number = tl.where(number > 0, number, 1.0)
    old = tl.load(running_mean + c, mask=c < C, other=0.0).to(tl.float64)
    new = old + rate * (tl.sum(m, 0)[None, :] / number - old)
    tl.store(running_mean + c, new.to(running_mean.dtype.element_ty), mask=c < C)
    old = tl.load(running_var + c, mask=c < C, other=0.0).to(tl.float64)
    new = old + rate * (tl.sum(v, 0)[None, :] / number - old)
    tl.store(running_var + c, new.to(running_var.dtype.element_ty), mask=c < C)
