"""The measure "evaluation": AP or errors under each kind of test statistics that a model has."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ...configuration.model import kinds_of
from ...engine.evaluation import evaluate_under
from ...layers.statistics import STATISTICS
from ...reporting.columns import Column, Result
from ...reporting.drawing import Picture, Results, bars
from .measure import Measure, Options
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


def _columns() -> tuple[Column, ...]:
    """AP and errors under the run's own statistics, then under the other kinds."""
    precision = "Mean average precision of {} on validation images, "
    means = {
        "box AP": precision.format("boxes") + "over overlaps from 0.5 to 0.95",
        "mask AP": precision.format("masks") + "over overlaps from 0.5 to 0.95",
        "box AP50": precision.format("boxes") + "at an overlap of 0.5",
        "top-1 error": "Share of validation images whose most likely class is wrong",
    }
    under = {
        None: ("", "under the statistics that the arm is tested with"),
        "precise": (", PreciseBN", "under population statistics of a PreciseBN pass"),
        "minibatch": (", mini-batch", "under mini-batch statistics, as in training"),
    }
    rows: tuple[tuple[str, str, str, str, str | None], ...] = (
        ("box AP", "box AP", "bbox", "AP", None),
        ("mask AP", "mask AP", "segm", "AP", None),
        ("box AP50", "box AP50", "bbox", "AP50", None),
        ("precise AP", "box AP", "bbox", "AP", "precise"),
        ("minibatch AP", "box AP", "bbox", "AP", "minibatch"),
        ("minibatch AP50", "box AP50", "bbox", "AP50", "minibatch"),
        ("error", "top-1 error", "classification", "top1_error", None),
        ("precise error", "top-1 error", "classification", "top1_error", "precise"),
        ("minibatch error", "top-1 error", "classification", "top1_error", "minibatch"),
    )
    return tuple(
        Column(
            key,
            f"{name}{under[kind][0]} (%)",
            1,
            metric(task, field, kind),
            f"{means[name]}, {under[kind][1]}.",
        )
        for key, name, task, field, kind in rows
    )


def _draw(results: Results) -> "Figure | None":
    column = {kind: Column(kind, kind, 1, metric("bbox", "AP", kind)) for kind in STATISTICS}
    series = {
        kind: [column[kind].estimate(runs) for runs in results.values()] for kind in STATISTICS
    }
    series = {kind: estimates for kind, estimates in series.items() if any(estimates)}
    return bars(list(results), series, "box AP (%)") if series else None


MEASURE = Measure(
    evaluation,
    columns=_columns(),
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
