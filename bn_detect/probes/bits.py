"""Bits about labels that a linear classifier reads from vectors, against a permuted null."""

from dataclasses import dataclass

import numpy as np

from .intervals import Array

FOLDS, DIMENSIONS = 5, 16
PENALTIES = (0.3, 3.0, 30.0, 300.0)
# Predicted probabilities are mixed with this share of the labels' frequencies, so that a wrong
# prediction made with certainty costs a few bits and not infinitely many.
CAUTION = 0.02


@dataclass(frozen=True)
class Bits:
    """Information about labels, in bits, averaged over the columns of labels that vary.

    Attributes:
        entropy: of the labels, the most that can be read.
        read: entropy minus cross-entropy of held-out predictions; negative where the classifier
            does worse than the labels' frequencies.
        null: (permutations,) the same when the labels belong to other samples.
    """

    entropy: float
    read: float
    null: Array


def bits_about(
    vectors: Array,
    labels: Array,
    batch: Array,
    *,
    permutations: int,
    seed: int,
) -> Bits | None:
    """Return the cross-validated bits that an L2-regularized logistic regression reads.

    Vectors are standardized and projected on their principal components, both fitted on the
    training part of each fold.

    Args:
        vectors: (N, D).
        labels: (N, L) int, L labels of each sample.
        batch: (N,) the batch of each sample; samples of one batch may have something in common and
            stay in one fold.
        permutations: of the labels, for the null.
        seed: of the permutations.

    Returns:
        None where no label varies enough: each of its values needs as many samples as there are
        folds.
    """
    from sklearn.model_selection import GroupKFold  # scikit-learn is slow to import
    from threadpoolctl import threadpool_limits

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
    with threadpool_limits(limits=1):  # the problems are so small that a second thread only waits
        null = np.array([_read(splits, labels[order]) for order in orders])
        return Bits(_entropy(labels), _read(splits, labels), null)


class _Split:
    """The training and the held-out vectors of one fold, projected."""

    def __init__(self, vectors: Array, train: Array, test: Array) -> None:
        self.train, self.test = train, test
        mean, deviation = vectors[train].mean(0), vectors[train].std(0)
        constant = deviation <= 1e-10 * np.abs(mean)  # but for rounding
        scaled = (vectors - mean) / np.where(constant, 1, deviation)
        _, spread, directions = np.linalg.svd(scaled[train], full_matrices=False)
        # Images of one group have equal vectors: there are fewer directions than samples.
        kept = spread[:DIMENSIONS] > max(1e-3 * spread[0], 1e-9)
        scale = np.sqrt(len(train)) / spread[:DIMENSIONS][kept]
        projected = scaled @ directions[:DIMENSIONS][kept].T * scale
        self._train_vectors, self._test_vectors = projected[train], projected[test]

    def loss(self, coded: Array, penalty: float) -> float:
        """Return the summed loss in bits of the held-out predictions; coded (N,) counts from 0."""
        frequency = np.bincount(coded) / len(coded)
        predicted = np.tile(frequency, (len(self.test), 1))
        if len(np.unique(coded[self.train])) > 1 and self._train_vectors.size:
            from sklearn.linear_model import LogisticRegression

            model = LogisticRegression(C=1 / penalty, max_iter=200)
            model.fit(self._train_vectors, coded[self.train])
            predicted *= CAUTION
            probabilities = model.predict_proba(self._test_vectors)
            predicted[:, model.classes_] += (1 - CAUTION) * probabilities
        return -float(np.log2(predicted[np.arange(len(self.test)), coded[self.test]]).sum())


def _read(splits: list[_Split], labels: Array) -> float:
    """Return entropy minus cross-entropy, mean over the labels, with the best penalty.

    The null chooses its penalty in the same way, so that it has the same advantage.
    """
    coded = [np.unique(column, return_inverse=True)[1] for column in labels.T]
    losses = [
        sum(split.loss(column, penalty) for column in coded for split in splits)
        for penalty in PENALTIES
    ]
    return _entropy(labels) - float(min(losses)) / labels.size


def _entropy(labels: Array) -> float:
    """Return the entropy in bits, mean over the columns."""
    entropies = []
    for column in labels.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        entropies.append(-(share * np.log2(share)).sum())
    return float(np.mean(entropies))
