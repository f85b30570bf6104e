"""The registered probes: what each measures, on how many images, and how a study shows it.

A new probe is one file and one row here. A study finds its measures of a run's checkpoint in
`PROBES`, by name, and takes from the same row the columns of its table and the figure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..layers import STATISTICS
from ..reporting.columns import Column, Result, Value, at
from ..reporting.drawing import Picture
from .decompose import decomposition
from .estimation_shift import estimation_shift
from .figures.bars import (
    DECOMPOSITION,
    FLIPS,
    LAYERS,
    SWAP,
    bits_of_all_layers,
    shift_of_layer,
)
from .jacobian import cross_roi_jacobian
from .mixing import mixed_statistics
from .statistics import statistics_probe
from .swaps.adversarial import adversarial_swap
from .swaps.swap import companion_swap


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
        first: whether a study takes it before anything else, since it gives the verdict in seconds.
        batches: the fewest batches of each split that it takes.
        arguments: what else `function` takes, of "population_loader", "population_batches" and
            "evaluate" (see `decomposition`).
    """

    function: Callable[..., Any]
    images: int
    columns: tuple[Column, ...] = ()
    figures: tuple[Picture, ...] = ()
    splits: tuple[str, ...] = ("TEST",)
    arguments: tuple[str, ...] = ()
    first: bool = False
    batches: int = 1


def _of_row(split: str, kind: str, field: str) -> Callable[[Result], Value | None]:
    """Return what looks up a field of the decomposition's row of these images and statistics."""

    def value(result: Result) -> Value | None:
        rows = (r for r in result.get("rows", ()) if (r["split"], r["statistics"]) == (split, kind))
        row = next(rows, None)
        return row and row.get(field)

    return value


PROBES: dict[str, Probe] = {
    "companion_swap": Probe(
        companion_swap,
        images=480,
        columns=(
            Column(
                "swap",
                "swap (nats)",
                3,
                at("classification", "change"),
                "By how much a RoI's classification loss rises when its companions in the batch "
                "are swapped for RoIs of other images.",
            ),
            Column(
                "null",
                "resampled (nats)",
                3,
                at("classification", "null"),
                "By how much the same loss rises when the companions are other RoIs of their own "
                "images, which tells what resampling alone does.",
            ),
            Column(
                "flips",
                "flipped (share)",
                3,
                at("flip_rate"),
                "Share of RoIs whose predicted class changes in the swap, from 0 to 1.",
            ),
            Column(
                "label leakage",
                "label leakage (nats)",
                3,
                at("label_leakage", "all"),
                "The part of the swap that goes away when the foreign companions have the classes "
                "of the RoI's own: what the head reads from its companions' labels.",
            ),
            Column(
                "image dependence",
                "image dependence (nats)",
                3,
                at("image_dependence", "all"),
                "The part of the swap that foreign companions of the same classes leave, beyond "
                "resampling: what the head reads from the image's statistics, such as its light.",
            ),
            Column(
                "foreground label leakage",
                "label leakage, foreground (nats)",
                3,
                at("label_leakage", "foreground"),
                "The label leakage of foreground RoIs alone.",
                shown=False,
            ),
        ),
        figures=(SWAP, FLIPS),
        first=True,
        batches=2,  # foreign companions come from another
    ),
    "cross_roi_jacobian": Probe(
        cross_roi_jacobian,
        images=160,  # each gradient is a backward
        columns=(
            Column(
                "gradient",
                "gradient on own image (share)",
                3,
                at("same_image"),
                "Share of the squared gradient of a RoI's logit that falls on the features of "
                "other RoIs of its image, from 0 to 1.",
            ),
        ),
    ),
    "statistics_probe": Probe(
        statistics_probe,
        images=480,
        columns=(
            Column(
                "bits",
                "classes in statistics (bits)",
                3,
                bits_of_all_layers,
                "How much a linear classifier learns about the classes of an image from its batch "
                "statistics alone, beyond what it learns from permuted labels.",
            ),
        ),
        figures=(LAYERS,),
        batches=2,  # cross-validated
    ),
    "decomposition": Probe(
        decomposition,
        images=480,
        columns=tuple(
            Column(
                f"{kind} {key}",
                f"{header}, {kind} ({unit})",
                3,
                _of_row("val", kind, field),
                f"{meaning}, under {kind} statistics.",
                shown=False,
            )
            for key, header, unit, field, meaning in (
                (
                    "loss",
                    "RoI loss",
                    "nats",
                    "loss",
                    "Classification loss of RoIs sampled as in training",
                ),
                (
                    "accuracy",
                    "RoIs right",
                    "share",
                    "foreground_accuracy",
                    "Share of sampled foreground RoIs whose predicted class is right",
                ),
                (
                    "object loss",
                    "loss of objects",
                    "nats",
                    "object_loss",
                    "Classification loss of the ground truth's boxes",
                ),
                (
                    "object accuracy",
                    "objects right",
                    "share",
                    "object_accuracy",
                    "Share of the ground truth's boxes whose most probable class, background left "
                    "out, is right",
                ),
            )
            for kind in STATISTICS
        ),
        figures=(DECOMPOSITION,),
        splits=("TRAIN", "TEST"),
        arguments=("population_loader", "population_batches", "evaluate"),
    ),
    "adversarial_swap": Probe(
        adversarial_swap,
        images=160,  # a search for each target
        columns=(
            Column(
                "worst",
                "worst companions (nats)",
                3,
                at("worst"),
                "By how much a RoI's classification loss rises under the worst companions of other "
                "images that a search finds: an upper bound on what companions can do.",
            ),
            Column(
                "worst flips",
                "flipped by the worst (share)",
                3,
                at("worst_flip_rate"),
                "Share of RoIs whose predicted class changes under the worst companions.",
            ),
        ),
        batches=2,
    ),
    "mixed_statistics": Probe(
        mixed_statistics,
        images=480,
        columns=(
            Column(
                "best alpha",
                "best alpha (share)",
                2,
                at("best"),
                "Share of the mini-batch in the statistics that gives training images the least "
                "loss at inference; the rest are population statistics.",
            ),
            Column(
                "mixing gain",
                "gain of mixing (nats)",
                3,
                at("gain"),
                "By how much that lowers a RoI's classification loss on validation images, against "
                "population statistics alone.",
            ),
        ),
        splits=("TRAIN", "TEST"),
    ),
    "estimation_shift": Probe(
        estimation_shift,
        images=480,
        columns=tuple(
            Column(
                f"shift, {place} layer",
                f"estimation shift, {place} layer (%)",
                1,
                partial(shift_of_layer, number),
                f"How far the population means of the head's {place} BN layer are from the means "
                "of its input at inference, in percent of a standard deviation.",
            )
            for place, number in (("first", 0), ("last", -1))
        ),
    ),
}
