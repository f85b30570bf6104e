"""What experiment (e) found."""

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from ..study.estimates import over_seeds
from .numbers import cell, difference, verdict
from .same_class import ARMS
from .section import Found, Section, values

COLUMNS = {
    "training": "training, last fifth",
    "val_population": "validation, population statistics",
    "val_same_class": "validation, mini-batches of one class",
    "val_mixed": "validation, mini-batches of mixed classes",
}
NAMES = {
    "mixed": "mixed classes, `worker`",
    "same_class": "one class a worker, `worker`",
    "shuffled": "one class a worker, `shuffled`",
    "global": "one class a worker, `global`",
}


def section_e(found: Found) -> Section:
    """A row for each arm."""
    rows = [
        [NAMES[arm], *(cell(over_seeds(values(found, arm, key))) for key in COLUMNS)]
        for arm in ARMS
    ]
    population = {arm: values(found, arm, "val_population") for arm in ARMS}
    leak, shuffled, whole = (
        difference(population["same_class"], population[arm])
        for arm in ("mixed", "shuffled", "global")
    )
    read = difference(
        values(found, "same_class", "val_population"),
        values(found, "same_class", "val_same_class"),
    )
    table = tabulate(rows, ["training batches, statistics", *COLUMNS.values()], tablefmt="github")
    claims = [
        verdict("Batches of one class raise the error under population statistics", leak),
        verdict("It reads the class from the batch: mini-batches of one class lower it", read),
        verdict("Shuffling lowers it", shuffled),
        verdict("SyncBN lowers it", whole),
    ]
    text = ["## (e) Mini-batches of one class", "", _SETTING, "", "Error, %:", "", table, ""]
    return Section("\n".join([*text, *claims]), {"same_class.png": (_CAPTION, _draw(found))})


def _draw(found: Found) -> Figure:
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    for number, (key, label) in enumerate(COLUMNS.items()):
        estimates = [over_seeds(values(found, arm, key)) for arm in ARMS]
        ends = np.array([[e.mean - e.low, e.high - e.mean] for e in estimates]).T
        x = np.arange(len(ARMS)) + 0.2 * (number - 1.5)
        axis.bar(x, [e.mean for e in estimates], 0.18, yerr=ends, label=label)
    axis.set_xticks(
        range(len(ARMS)), [NAMES[arm].replace("`", "").replace(", ", "\n") for arm in ARMS]
    )
    axis.set_ylabel("error, %")
    axis.set_ylim(0, 100)
    axis.legend(fontsize=8)
    return figure


_SETTING = (
    "A step has 8 workers of 8 images. In three arms the images of a worker are of one class, "
    "drawn anew at each step (`DATALOADER.CLASSES_PER_WORKER_BATCH 1`). Population statistics are "
    "PreciseBN's over mixed batches of 64 training images."
)
_CAPTION = "Error of four arms: mean and 95% interval."
