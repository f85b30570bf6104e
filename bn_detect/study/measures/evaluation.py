"""The measure "evaluation": AP or errors under each kind of test statistics that a model has."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ...configuration.model import kinds_of
from ...engine.evaluation import evaluate_under
from ...layers.statistics import STATISTICS
from ...reporting.columns import Column, Result
from ...reporting.drawing import bars
from .measure import Measure, Options, Picture, Results
from .subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def evaluation(subject: Subject, options: Options, kept: Result) -> Iterator[dict[str, Any]]:
    """Yield {KIND: {DATASET: {TASK: {METRIC: value}}}}, and the kind that the config asks for."""
    yield {"test_stats": subject.cfg.MODEL.ROI_BN.TEST_STATS}
    for kind in kinds_of(subject.model):
        if kind not in kept:
            yield {kind: evaluate_under(subject.cfg, subject.model, [kind])[kind]}


def metric(task: str, name: str, kind: str | None = None) -> Callable[[Result], float | None]:
    """Return what looks up a metric on the first dataset; without `kind`, of the run's own kind."""

    def value(result: Result) -> float | None:
        datasets = result.get(kind or result.get("test_stats", "population"), {})
        first: dict = next(iter(datasets.values()), {})
        return first.get(task, {}).get(name)

    return value


def _error(kind: str) -> Callable[[Result], float | None]:
    return metric("classification", "top1_error", kind)


def _draw(results: Results) -> "Figure | None":
    column = {kind: Column(kind, kind, 1, metric("bbox", "AP", kind)) for kind in STATISTICS}
    series = {
        kind: [column[kind].estimate(runs) for runs in results.values()] for kind in STATISTICS
    }
    series = {kind: estimates for kind, estimates in series.items() if any(estimates)}
    return bars(list(results), series, "box AP") if series else None


MEASURE = Measure(
    evaluation,
    columns=(
        Column("box AP", "box AP", 1, metric("bbox", "AP")),
        Column("mask AP", "mask AP", 1, metric("segm", "AP")),
        Column("box AP50", "box AP50", 1, metric("bbox", "AP50")),
        Column("precise AP", "box AP, PreciseBN", 1, metric("bbox", "AP", "precise")),
        Column("minibatch AP", "box AP, mini-batch", 1, metric("bbox", "AP", "minibatch")),
        Column("minibatch AP50", "box AP50, mini-batch", 1, metric("bbox", "AP50", "minibatch")),
        Column("error", "top-1 error, %", 1, metric("classification", "top1_error")),
        *(
            Column(f"{kind} error", f"top-1 error, %, {words}", 1, _error(kind))
            for kind, words in (("precise", "PreciseBN"), ("minibatch", "mini-batch"))
        ),
    ),
    figures=(
        Picture(
            "ap",
            "Validation AP under three kinds of test statistics. A head that leaks does well under "
            "mini-batch statistics and poorly under population statistics.",
            _draw,
        ),
    ),
    reads=("TEST", "TRAIN"),
    every_worker=True,
)
