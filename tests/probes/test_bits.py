"""Bits that a classifier reads, against channels whose information is known."""

import numpy as np
import pytest

from bn_detect.probes.bits import bits_about


def test_bits_of_a_noisy_channel():
    """A bit that is flipped with probability 0.1 tells 1 - h(0.1) = 0.531 bits about itself."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 3000)
    seen = np.where(rng.random(3000) < 0.1, 1 - truth, truth)
    vectors = np.stack([seen, rng.standard_normal(3000)], axis=1)
    found = bits_about(vectors, truth[:, None], np.arange(3000) // 10, permutations=3, seed=0)
    assert found.entropy == pytest.approx(1, abs=0.01)
    assert found.read == pytest.approx(0.531, abs=0.04)
    assert np.abs(found.null).max() < 0.01


def test_bits_are_read_from_other_batches():
    """What only identifies the batch, whose images are alike, tells nothing."""
    batch = np.arange(200) // 10
    truth = np.random.default_rng(0).integers(0, 2, 20)[batch]
    vectors = np.random.default_rng(1).standard_normal((20, 30))[batch]
    found = bits_about(vectors, truth[:, None], batch, permutations=3, seed=0)
    assert found.read < 0.15


def test_constant_vectors_and_labels():
    """Columns that are constant but for rounding tell nothing; labels that are cannot be read."""
    batch, truth = np.arange(200) // 10, np.random.default_rng(0).integers(0, 2, (200, 1))
    constant = np.full((200, 3), 1e3) * (1 + 1e-16 * np.arange(200)[:, None])
    found = bits_about(constant, truth, batch, permutations=2, seed=0)
    assert abs(found.read) < 0.02
    assert bits_about(constant, np.zeros((200, 1), int), batch, permutations=2, seed=0) is None
    assert bits_about(constant, truth, np.zeros(200), permutations=2, seed=0) is None
