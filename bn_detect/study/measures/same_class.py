"""The measure "same_class_error": a classifier's errors over training, percent, as BN may leak.

A network that reads the class from its mini-batch does well on mini-batches of one class, and badly
under population statistics.
"""

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ...engine.same_class_sampler import SameClassSampler
from ...reporting.columns import Column, Result
from ...reporting.drawing import Picture, Results, band, new_figure, style
from ...reporting.estimates import mean_of
from .classification import ONE_BATCH, check_classifier, error, followed, in_batches, precise
from .measure import Measure, Options
from .subject import Images, mapped_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKS = 6  # evaluations over training
SHARE = 2  # every second image of each dataset is used
ERRORS = {1: "validation, PreciseBN", 2: "validation, mini-batches of one class"}


class FollowErrors(HookBase):
    """Evaluate over training under PreciseBN, and where each worker's images are of one class.

    Attributes:
        result: "errors": rows [iterations done, under PreciseBN, on mini-batches of one class].
    """

    def __init__(self, train: Images, val: Images, batch: int, workers: int) -> None:
        self._train, self._val = in_batches(train), in_batches(val)
        self._one_class = same_class_batches(val, batch, workers)
        self._size = batch // workers
        self.result: dict[str, Any] = {"errors": []}

    def after_step(self) -> None:
        done, whole, model = self.trainer.iter + 1, self.trainer.max_iter, self.trainer.model
        if done * CHECKS // whole == (done - 1) * CHECKS // whole:
            return
        with precise(model, self._train, **ONE_BATCH):
            under_precise = error(model, self._val)
        one_class = error(model, self._one_class, images_per_group=self._size)
        self.result["errors"].append([done, under_precise, one_class])

    def state_dict(self) -> dict[str, Any]:
        return {"result": self.result}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.result = state["result"]


def same_class_batches(images: Images, batch: int, workers: int) -> list[Images]:
    """Batch as many images as there are as in training: those of a worker are of one class."""
    size = batch // workers
    labels = [d["label"] for d in images]
    sampler = SameClassSampler(labels, 1, size, virtual_workers=workers)
    return in_batches([images[i] for i in islice(sampler, len(images) // size * size)], batch)


def _follow(cfg: CfgNode, options: Options) -> FollowErrors:
    train, val = (
        mapped_images(cfg, names[0])[::SHARE] for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    return FollowErrors(train, val, cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.ROI_BN.VIRTUAL_WORKERS)


def _last(column: int, result: Result) -> float | None:
    return result["errors"][-1][column] if result.get("errors") else None


def _draw(results: Results) -> "Figure":
    figure = new_figure(4.5 * len(ERRORS), 3.6)
    axes = figure.subplots(1, len(ERRORS), sharey=True, squeeze=False)[0]
    for axis, (column, title) in zip(axes, ERRORS.items(), strict=True):
        for number, (arm, runs) in enumerate(results.items()):
            rows = zip(*(run["errors"] for run in runs), strict=True)
            points = [(row[0][0], mean_of([seed[column] for seed in row])) for row in rows]
            estimates = [estimate for _, estimate in points]
            band(axis, [x for x, _ in points], estimates, arm, **style(arm, number))
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("iteration")
    axes[0].set_ylabel("error, %")
    axes[0].legend(fontsize=8)
    return figure


MEASURE = Measure(
    followed("same_class_error"),
    columns=(
        Column(
            "val_same_class",
            f"{ERRORS[2]} (%)",
            1,
            partial(_last, 2),
            "Top-1 error on validation images where each mini-batch holds one class, as in "
            "training on batches of one class.",
        ),
    ),
    figures=(Picture("errors", "Errors over training: mean and 95% interval.", _draw),),
    check=check_classifier,
    reads=("TEST", "TRAIN"),
    follow=_follow,
)
