"""Moments: exact far from zero, and pooled over batches as over all values."""

import pytest
import torch

from bn_detect.population.moments import BatchedMoments, moments, pool_over_ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 7), (300, 3, 2, 2), (2, 3, 40, 40)])
@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_of_one_tensor(shape, mean, dtype):
    g = torch.Generator().manual_seed(0)
    x = (mean + torch.randn(shape, generator=g)).to(dtype)
    values = x.double().transpose(0, 1).flatten(1)
    found_mean, found_m2 = moments(x)
    torch.testing.assert_close(found_mean, values.mean(1), rtol=1e-6, atol=1e-6)
    m2 = (values - values.mean(1, keepdim=True)).square().sum(1)
    torch.testing.assert_close(found_m2, m2, rtol=1e-5, atol=1e-9)


def test_batches_are_pooled_and_told_apart():
    g = torch.Generator().manual_seed(0)
    batches = [i + torch.randn(n, 2, 3, generator=g) for i, n in enumerate((4, 0, 1, 6))]
    pooled = BatchedMoments(2, CPU)
    for batch in batches:
        first, second = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        pooled.add(first)  # two calls of one batch
        pooled.add(second)
        pooled.end_batch()
    assert pooled.batches == 3 and pooled.total.count == 11 * 3
    parts = [b.double().transpose(0, 1).flatten(1) for b in batches if len(b)]
    values = torch.cat(parts, dim=1)
    torch.testing.assert_close(pooled.total.mean, values.mean(1))
    torch.testing.assert_close(pooled.total.m2, values.var(1, correction=0) * values.shape[1])
    within = sum(p.var(1, correction=0) * p.shape[1] for p in parts)
    torch.testing.assert_close(pooled.within, within)
    one = BatchedMoments(2, CPU)
    one.add(batches[0])
    one.end_batch()
    assert one.standard_error().isnan().all() and pooled.standard_error().isfinite().all()
    pool_over_ranks([one], None)
    assert one.total.count == 12
