"""The registered probes: what each measures, on how many images, and how a study shows it.

A new probe is one file and one row here. A study finds its measures of a run's checkpoint in
`PROBES`, by name, and takes from the same row the columns of its table and the figure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..reporting.columns import Column, at
from .decompose import decomposition
from .figures.bars import DECOMPOSITION, FLIPS, LAYERS, SWAP, ProbeFigure, bits_of_all_layers
from .jacobian import cross_roi_jacobian
from .statistics import statistics_probe
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
        arguments: what else `function` takes, of "population_loader", "population_batches" and
            "evaluate" (see `decomposition`).
    """

    function: Callable[..., Any]
    images: int
    columns: tuple[Column, ...] = ()
    figures: tuple[ProbeFigure, ...] = ()
    splits: tuple[str, ...] = ("TEST",)
    arguments: tuple[str, ...] = ()
    first: bool = False


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
        ),
        figures=(SWAP, FLIPS),
        first=True,
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
    ),
    "decomposition": Probe(
        decomposition,
        images=480,
        figures=(DECOMPOSITION,),
        splits=("TRAIN", "TEST"),
        arguments=("population_loader", "population_batches", "evaluate"),
    ),
}
