"""Top-1 and top-5 error, against counting by hand.

On two ranks: tests/modeling/test_image_classifier.py, which starts them.
"""

import numpy as np
import pytest
import torch

from bn_detect.engine.classification_evaluator import ClassificationEvaluator


def data(number: int = 57, classes: int = 9) -> tuple[list[dict], list[dict]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (number,), generator=generator).tolist()
    scores = torch.randn(number, classes, generator=generator).round(decimals=1)  # some are equal
    return [{"label": label} for label in labels], [{"scores": s} for s in scores]


def by_hand(inputs: list[dict], outputs: list[dict], best: int) -> float:
    wrong = 0
    for each, output in zip(inputs, outputs, strict=True):
        scores = output["scores"].tolist()
        order = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
        wrong += each["label"] not in order[:best]
    return 100 * wrong / len(inputs)


def evaluated(inputs, outputs, size: int = 10) -> dict:
    evaluator = ClassificationEvaluator()
    evaluator.reset()
    for start in range(0, len(inputs), size):
        evaluator.process(inputs[start : start + size], outputs[start : start + size])
    return evaluator.evaluate()


def test_errors_are_those_counted_by_hand():
    inputs, outputs = data()
    expected = {
        "top1_error": by_hand(inputs, outputs, 1),
        "top5_error": by_hand(inputs, outputs, 5),
    }
    assert 0 < expected["top5_error"] < expected["top1_error"] < 100
    assert evaluated(inputs, outputs) == {"classification": pytest.approx(expected)}


def test_few_classes_have_no_top5_error():
    assert evaluated(*data(classes=4))["classification"]["top5_error"] == 0


def test_reset_forgets():
    evaluator = ClassificationEvaluator()
    for part in (data(20), data(9)):
        evaluator.reset()
        evaluator.process(*part)
        assert evaluator.evaluate()["classification"]["top1_error"] == by_hand(*part, 1)
    assert not np.isclose(by_hand(*data(20), 1), by_hand(*data(9), 1))


def on_rank(rank: int, world_size: int) -> dict:
    """Each rank has a share, one of them a small one."""
    inputs, outputs = data()
    share = slice(0, 50) if rank == 0 else slice(50, None)
    return evaluated(inputs[share], outputs[share])
