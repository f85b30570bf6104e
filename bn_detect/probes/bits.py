"""How many bits about labels a linear classifier reads from vectors, with a permuted null."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

FOLDS, DIMENSIONS = 5, 16
PENALTIES = (0.3, 3.0, 30.0, 300.0)
# Probabilities are mixed with this share of the labels' frequencies: a wrong certainty costs a
# few bits, not all.
CAUTION = 0.02


@dataclass(frozen=True)
class Bits:
    """Information about labels, averaged over the columns that vary.

    Attributes:
        entropy: of the labels, in bits: all there is to read.
        read: entropy minus cross-entropy of held-out predictions; below 0 where a classifier
            does worse than the labels' frequencies.
        null: (permutations,) the same with the labels of other samples.
    """

    entropy: float
    read: float
    null: np.ndarray


@threadpool_limits.wrap(limits=1)  # problems so small that a second thread only waits
def bits_about(
    vectors: np.ndarray,
    labels: np.ndarray,
    batch: np.ndarray,
    *,
    permutations: int,
    seed: int,
) -> Bits | None:
    """Cross-validated bits that an L2-regularized logistic regression reads from `vectors`.

    Vectors are standardized and projected on their principal components, as the training part of
    each fold has them.

    Args:
        vectors: (N, D). labels: (N, L) int, L labels of each sample.
        batch: (N,) samples of one batch are in one fold, for what they have in common.

    Returns:
        None where no label varies enough: every value needs as many samples as there are folds.
    """
    folds = min(FOLDS, len(np.unique(batch)))
    counts = [np.unique(column, return_counts=True)[1] for column in labels.T]
    varies = [len(count) > 1 and count.min() >= folds for count in counts]
    if folds < 2 or not any(varies):
        return None
    labels = labels[:, varies]
    splits = [
        _Split(vectors, train, test)
        for train, test in GroupKFold(folds).split(vectors, groups=batch)
    ]
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(labels)) for _ in range(permutations)]
    return Bits(
        _entropy(labels),
        _read(splits, labels),
        np.array([_read(splits, labels[order]) for order in orders]),
    )


class _Split:
    """A fold: its training and its held-out vectors, projected."""

    def __init__(self, vectors: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
        self.train, self.test = train, test
        scaler = StandardScaler().fit(vectors[train])
        scaled = scaler.transform(vectors)
        _, spread, directions = np.linalg.svd(scaled[train], full_matrices=False)
        # Of equal vectors, as images of one group have, there are fewer directions than samples.
        kept = spread[:DIMENSIONS] > max(1e-3 * spread[0], 1e-9)
        scale = np.sqrt(len(train)) / spread[:DIMENSIONS][kept]
        projected = scaled @ directions[:DIMENSIONS][kept].T * scale
        self._train_vectors, self._test_vectors = projected[train], projected[test]

    def loss(self, coded: np.ndarray, penalty: float) -> float:
        """Of the held-out predictions of one label (N,) in [0, values): bits, summed."""
        frequency = np.bincount(coded) / len(coded)
        predicted = np.tile(frequency, (len(self.test), 1))
        if len(np.unique(coded[self.train])) > 1 and self._train_vectors.size:
            model = LogisticRegression(C=1 / penalty, max_iter=200)
            model.fit(self._train_vectors, coded[self.train])
            predicted *= CAUTION
            found = model.predict_proba(self._test_vectors)
            predicted[:, model.classes_] += (1 - CAUTION) * found
        return -np.log2(predicted[np.arange(len(self.test)), coded[self.test]]).sum()


def _read(splits: list[_Split], labels: np.ndarray) -> float:
    """Entropy minus cross-entropy, mean over the labels, with the penalty that suits them best.

    The null chooses its penalty, too, and so has the same advantage.
    """
    coded = [np.unique(column, return_inverse=True)[1] for column in labels.T]
    losses = [
        sum(split.loss(column, penalty) for column in coded for split in splits)
        for penalty in PENALTIES
    ]
    return _entropy(labels) - float(min(losses)) / labels.size


def _entropy(labels: np.ndarray) -> float:
    """In bits, mean over the columns."""
    each = []
    for column in labels.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        each.append(-(share * np.log2(share)).sum())
    return float(np.mean(each))
