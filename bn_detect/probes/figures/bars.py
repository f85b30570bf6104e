"""The figures that the probes add to a study's report, each from the reports of all arms."""

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...reporting.columns import Column, at
from ...reporting.drawing import (
    Picture,
    Results,
    bars,
    dots,
    new_figure,
    panels,
    style,
    without_shared_prefix,
    wrapped,
)
from ...reporting.estimates import over_seeds
from .flips import draw_flips

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bits_of_all_layers(report: Mapping[str, Any]) -> float | None:
    """Return the bits that the statistics of all layers tell about the first label."""
    return next((float(row["bits"]) for row in report.get("all_layers", ())), None)


def shift_of_layer(number: int, report: Mapping[str, Any]) -> float | None:
    """Return the estimation shift of the means of a layer, in percent of a standard deviation."""
    layers = report.get("layers")
    mean = layers[number]["mean"] if layers else None
    return None if mean is None else 100 * float(mean)


def _swap(reports: Results) -> "Figure | None":
    change = Column("", "", 3, at("classification", "change"))
    null = Column("", "", 3, at("classification", "null"))
    estimates = {arm: change.estimate(list(each)) for arm, each in reports.items()}
    probed = {arm: estimate for arm, estimate in estimates.items() if estimate}
    if not probed:
        return None
    figure = new_figure(7, 0.6 + 0.5 * len(probed))
    axis = figure.subplots()
    for y, (arm, estimate) in enumerate(probed.items()):
        axis.barh(y, estimate.mean, height=0.55, **style(arm, y, filled=True))
        if estimate.has_interval:
            axis.plot([estimate.low, estimate.high], [y, y], color="black", lw=1.5)
        dots(axis, estimate.values, [y] * len(estimate.values))
        if resampled := null.estimate(list(reports[arm])):
            axis.plot(resampled.mean, y, "D", color="white", mec="black", ms=5)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(probed)), list(probed))
    axis.invert_yaxis()
    axis.set_xlabel("change of loss (nats per RoI)")
    return figure


def _decomposition(reports: Results) -> "Figure | None":
    rows = {arm: [r for report in each for r in report["rows"]] for arm, each in reports.items()}
    rows = {arm: each for arm, each in rows.items() if each}
    if not rows:
        return None
    splits, kinds = (
        list(dict.fromkeys(row[key] for each in rows.values() for row in each))
        for key in ("split", "statistics")
    )
    figure, axes = panels(len(rows), 3.2, 3.2, sharey=True)
    for number, (axis, (arm, each)) in enumerate(zip(axes, rows.items(), strict=True)):
        losses = {
            split: [
                [r["loss"] for r in each if (r["split"], r["statistics"]) == (split, kind)]
                for kind in kinds
            ]
            for split in splits
        }
        series = {
            split: [over_seeds([v for v in of_kind if v is not None]) for of_kind in values]
            for split, values in losses.items()
        }
        looks = style(arm, number, filled=True)
        pale = [0.4 if split == "train" else 1.0 for split in splits]
        bars(kinds, series, "", axis, alpha=pale, facecolor=[looks["facecolor"]] * len(splits))
        axis.set_title(wrapped(arm, 4), fontsize=9)
        if axis is not axes[-1] and (legend := axis.get_legend()):
            legend.remove()
    axes[0].set_ylabel("classification loss (nats)")
    return figure


def _layers(reports: Results) -> "Figure | None":
    """Bits by layer and label."""
    bits: dict[str, dict[tuple[str, str], list[float]]] = {}
    null: dict[tuple[str, str], list[float]] = {}
    for arm, each in reports.items():
        for layer in (layer for report in each for layer in report["layers"]):
            key = layer["name"], layer["label"]
            bits.setdefault(arm, {}).setdefault(key, []).append(layer["bits"])
            null.setdefault(key, []).append(layer["null_std"])
    if not bits:
        return None
    series = {
        arm: [over_seeds(layers.get(key, ())) for key in null] for arm, layers in bits.items()
    }
    names = without_shared_prefix([name for name, _ in null])
    labels = [f"{name}\n{label}" for name, (_, label) in zip(names, null, strict=True)]
    figure = bars(labels, series, "beyond permuted labels (bits)")
    for x, spreads in enumerate(null.values()):
        for sign in (-1.96, 1.96):
            level = sign * statistics.fmean(spreads)
            figure.axes[0].plot([x - 0.45, x + 0.45], [level, level], "k--", lw=0.8)
    return figure


SWAP = Picture(
    "swap",
    "Companion swap: change of a RoI's classification loss when its companions in the batch are "
    "those of other images (bars: mean and 95% interval; dots: seeds; diamonds: other RoIs of its "
    "own images, which is what resampling alone does). Above zero: the head depends on its "
    "companions; label leakage and image dependence tell by what.",
    _swap,
)
FLIPS = Picture(
    "flips", "RoIs whose prediction flips when their companions are swapped.", draw_flips
)
LAYERS = Picture(
    "layers",
    "What a linear classifier reads about an image from the batch statistics of each BN layer, "
    "beyond what it reads from permuted labels (whose spread the lines show).",
    _layers,
)
DECOMPOSITION = Picture(
    "decomposition",
    "Loss on sampled RoIs: training against validation data is the generalization gap, mini-batch "
    "against population statistics the train-test inconsistency, moving average against precise "
    "the error of the moving average.",
    _decomposition,
)
