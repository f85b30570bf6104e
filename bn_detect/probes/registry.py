"""The registered probes: what each measures, on how many images, and how a study shows it.

A new probe is one file and one row here. A study finds its measures of a run's checkpoint in
`PROBES`, by name, and takes from the same row the columns of its table and the figure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .decompose import decomposition
from .jacobian import cross_roi_jacobian
from .statistics import statistics_probe
from .swap import companion_swap


@dataclass(frozen=True)
class Probe:
    """One probe of a box head.

    Attributes:
        function: `function(model, loader, num_batches, *, partition, seed, ...)`, which returns a
            report: a dataclass that prints as a table. `decomposition` takes a loader for each of
            several sets of images.
        images: how many images a study probes, where the dataset has as many.
        columns: the columns that the probe adds to a study's table.
        figure: makes the picture that the probe adds to a study's report, or None.
    """

    function: Callable[..., Any]
    images: int
    columns: tuple[Any, ...] = ()
    figure: Callable[..., Any] | None = None


PROBES: dict[str, Probe] = {
    "companion_swap": Probe(companion_swap, images=480),
    "cross_roi_jacobian": Probe(cross_roi_jacobian, images=160),  # each gradient is a backward
    "statistics_probe": Probe(statistics_probe, images=480),
    "decomposition": Probe(decomposition, images=480),
}
