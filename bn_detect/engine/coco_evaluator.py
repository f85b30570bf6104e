"""COCO's AP, computed by `faster-coco-eval` where it is installed, with the same numbers.

Detectron2 has a fast evaluation of its own only where its compiled part is installed.
"""

import functools
import importlib.util
from itertools import chain
from typing import Any

from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from pycocotools.cocoeval import COCOeval


def build_coco_evaluator(dataset_name: str, output_dir: str | None) -> COCOEvaluator:
    """Return the evaluator of a dataset; the faster one where its library is installed."""
    there = importlib.util.find_spec("faster_coco_eval") is not None
    return (FasterCOCOEvaluator if there else COCOEvaluator)(dataset_name, output_dir=output_dir)


class FasterCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator; `faster-coco-eval` matches and accumulates boxes and masks.

    Keypoints remain with pycocotools, whose objects the library does not take for them.
    """

    _do_evaluation: bool  # set by the parent

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        from faster_coco_eval import COCOeval_faster

        faster = functools.partial(COCOeval_faster, print_function=print)
        self._prepare_and_save(predictions, img_ids)
        if not self._do_evaluation:
            return
        self._logger.info("Evaluating predictions with faster-coco-eval ...")
        results = list(chain.from_iterable(p["instances"] for p in predictions))
        for task in sorted(self._tasks or self._tasks_from_predictions(results)):
            evaluated = results and _evaluate_predictions_on_coco(
                self._coco_api,
                results,
                task,
                kpt_oks_sigmas=self._kpt_oks_sigmas,
                cocoeval_fn=COCOeval if task == "keypoints" else faster,
                img_ids=img_ids,
                max_dets_per_image=self._max_dets_per_image,
            )
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(evaluated or None, task, names)

    def _prepare_and_save(self, predictions: list[dict[str, Any]], img_ids: Any) -> None:
        """Do what the parent does before it evaluates: give categories COCO's ids, write a file."""
        evaluates = self._do_evaluation
        self._do_evaluation = False
        self._logger.disabled = evaluates  # else it says that there are no annotations
        try:
            super()._eval_predictions(predictions, img_ids)
        finally:
            self._do_evaluation, self._logger.disabled = evaluates, False
