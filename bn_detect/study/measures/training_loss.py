"""The measure "training_loss": what Detectron2 wrote while it trained. Every trained arm has it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...reporting.columns import Column, Result, at
from ...reporting.drawing import Picture, Results, new_figure, style
from .measure import Measure, Options
from .metrics import read_metrics, training_curves, training_summary
from .subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_loss(subject: Subject, options: Options, kept: Result) -> Iterator[dict[str, Any]]:
    """Yield "last", {LOSS: mean over the last tenth}, and "curves", {"iteration", LOSS: [...]}."""
    records = read_metrics(subject.folder / "metrics.json")
    yield {"last": training_summary(records), "curves": training_curves(records)}


def _draw(results: Results) -> "Figure | None":
    figure = new_figure(7, 3.6)
    axis = figure.subplots()
    for number, (arm, runs) in enumerate(results.items()):
        curves = [c for run in runs if "loss_cls" in (c := run.get("curves", {}))]
        if not curves:
            continue
        length = min(len(c["iteration"]) for c in curves)
        columns = list(zip(*(c["loss_cls"][:length] for c in curves), strict=True))
        iterations = curves[0]["iteration"][:length]
        means = [sum(values) / len(values) for values in columns]
        looks = style(arm, number)
        axis.plot(iterations, means, label=arm, **looks)
        if len(curves) > 1:
            low, high = ([end(values) for values in columns] for end in (min, max))
            axis.fill_between(iterations, low, high, color=looks["color"], alpha=0.15, lw=0)
    if not axis.lines:
        return None
    axis.set_xlabel("iteration")
    axis.set_ylabel("training loss of classes (nats)")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


MEASURE = Measure(
    training_loss,
    columns=(
        Column(
            "loss",
            "training loss of classes (nats)",
            2,
            at("last", "loss_cls"),
            "Mean classification loss over the last tenth of training; much below the other arms' "
            "it is a sign of a shortcut.",
        ),
    ),
    figures=(
        Picture(
            "curves",
            "Training loss of the classifier, mean over seeds. Falling below what the other arms "
            "reach is a sign of a shortcut.",
            _draw,
        ),
    ),
)
