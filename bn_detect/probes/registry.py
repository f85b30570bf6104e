"""The registered probes: what each measures, on how many images, and how a study shows it.

A new probe is one file and one row here. A study finds its measures of a run's checkpoint in
`PROBES`, by name, and takes from the same row the columns of its table and the figure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..layers import STATISTICS
from ..reporting.columns import Column, Result, Value, at
from .decompose import decomposition
from .figures.bars import DECOMPOSITION, FLIPS, LAYERS, SWAP, ProbeFigure, bits_of_all_layers
from .jacobian import cross_roi_jacobian
from .statistics import statistics_probe
from .swap import companion_swap


@dataclass(frozen=True)
class Probe:
    """One probe of a box head.

    Attributes:
        function: `function(model, loader, num_batches, *, partition, seed, ...)`, which returns a
            report: a dataclass that prints as a table.
        images: how many images a study probes, where the dataset has as many.
        columns: the columns that the probe adds to a study's table; they read the report's fields.
        figures: what it adds to a study's report.
        splits: of DATASETS, whose images it probes. Where there are several, `function` takes a
            mapping of "train" and "val" to loaders.
        arguments: what else `function` takes, of "population_loader", "population_batches" and
            "evaluate" (see `decomposition`).
    """

    function: Callable[..., Any]
    images: int
    columns: tuple[Column, ...] = ()
    figures: tuple[ProbeFigure, ...] = ()
    splits: tuple[str, ...] = ("TEST",)
    arguments: tuple[str, ...] = ()


def _of_row(split: str, kind: str, field: str) -> Callable[[Result], Value | None]:
    """Return what looks up a field of the decomposition's row of these images and statistics."""

    def value(result: Result) -> Value | None:
        rows = (r for r in result.get("rows", ()) if (r["split"], r["statistics"]) == (split, kind))
        row = next(rows, None)
        return row and row[field]

    return value


PROBES: dict[str, Probe] = {
    "companion_swap": Probe(
        companion_swap,
        images=480,
        columns=(
            Column("swap", "swap (nats)", 3, at("classification", "change")),
            Column("null", "resampled (nats)", 3, at("classification", "null")),
            Column("flips", "flipped", 3, at("flip_rate")),
            Column("label leakage", "label leakage (nats)", 3, at("label_leakage", "all")),
            Column("image dependence", "image dependence (nats)", 3, at("image_dependence", "all")),
            Column(
                "foreground label leakage",
                "label leakage, foreground (nats)",
                3,
                at("label_leakage", "foreground"),
                shown=False,
            ),
        ),
        figures=(SWAP, FLIPS),
    ),
    "cross_roi_jacobian": Probe(
        cross_roi_jacobian,
        images=160,  # each gradient is a backward
        columns=(Column("gradient", "gradient on own image", 3, at("same_image")),),
    ),
    "statistics_probe": Probe(
        statistics_probe,
        images=480,
        columns=(Column("bits", "bits in statistics", 3, bits_of_all_layers),),
        figures=(LAYERS,),
    ),
    "decomposition": Probe(
        decomposition,
        images=480,
        columns=tuple(
            Column(
                f"{kind} {key}", f"{header}, {kind}", 3, _of_row("val", kind, field), shown=False
            )
            for key, header, field in (
                ("loss", "RoI loss (class)", "loss"),
                ("accuracy", "accuracy, foreground RoIs", "foreground_accuracy"),
            )
            for kind in STATISTICS
        ),
        figures=(DECOMPOSITION,),
        splits=("TRAIN", "TEST"),
        arguments=("population_loader", "population_batches", "evaluate"),
    ),
}
