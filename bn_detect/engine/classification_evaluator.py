"""Evaluate an image classifier: top-1 and top-5 error."""

from collections.abc import Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

TASK = "classification"


class ClassificationEvaluator(DatasetEvaluator):
    """Count wrong predictions over all ranks; of classes with equal scores the lower one counts.

    Where there are five classes or fewer, no top-5 prediction is wrong.
    """

    def reset(self) -> None:
        self._wrong1 = self._wrong5 = self._images = 0

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Count the images of a batch.

        Args:
            inputs: with "label". outputs: with "scores", (classes,); see `BNImageClassifier`.
        """
        labels = torch.tensor([each["label"] for each in inputs])
        scores = torch.stack([each["scores"] for each in outputs]).cpu()
        ranked = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
        right = ranked == labels[:, None]
        self._wrong1 += int((~right[:, 0]).sum())
        self._wrong5 += int((~right.any(1)).sum())
        self._images += len(labels)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return {"classification": {"top1_error", "top5_error"}}, percent, on rank 0; else {}."""
        counts = comm.gather((self._wrong1, self._wrong5, self._images))
        if not comm.is_main_process():
            return {}
        wrong1, wrong5, images = map(sum, zip(*counts, strict=True))
        errors = {"top1_error": 100 * wrong1 / images, "top5_error": 100 * wrong5 / images}
        return {TASK: errors}
