"""The pictures of a study's report, each from a results.json."""

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .estimates import Estimate, over_seeds
from .flips import draw_flips
from .summary import ArmSummary, evaluation

STATISTICS = ("minibatch", "population", "precise")
KINDS = ("population", "minibatch", "precise")


def draw_figures(results: dict, arms: list[ArmSummary], folder: Path) -> dict[str, Path]:
    """Draw what was measured; returns caption -> PNG, in the order of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = {name: arm["runs"] for name, arm in results["arms"].items() if arm["runs"]}
    drawings: list[tuple[str, str, Callable[[], Figure | None]]] = [
        (
            "swap.png",
            "Companion swap: change of a RoI's classification loss when its companions in the "
            "batch are those of other images (bars: mean and 95% interval; dots: seeds; diamonds: "
            "other RoIs of its own images, which is what resampling alone does). Above zero: the "
            "head reads its companions.",
            lambda: _swap(arms),
        ),
        (
            "ap.png",
            "Validation AP under three kinds of test statistics. A head that leaks does well under "
            "mini-batch statistics and poorly under population statistics.",
            lambda: _ap(runs),
        ),
        (
            "decomposition.png",
            "Loss on sampled RoIs: training against validation data is the generalization gap, "
            "mini-batch against population statistics the train-test inconsistency, moving average "
            "against precise the error of the moving average.",
            lambda: _decomposition(runs),
        ),
        (
            "layers.png",
            "What a linear classifier reads about an image from the batch statistics of each BN "
            "layer, beyond what it reads from permuted labels (whose spread the lines show).",
            lambda: _layers(runs),
        ),
        (
            "curves.png",
            "Training loss of the classifier, mean over seeds. Falling below what the other arms "
            "reach is a sign of a shortcut.",
            lambda: _curves(runs),
        ),
        (
            "flips.png",
            "RoIs whose prediction flips when their companions are swapped.",
            lambda: draw_flips(results),
        ),
    ]
    drawn = {}
    for name, caption, draw in drawings:
        with matplotlib.rc_context({"text.parse_math": False}):  # a name may hold a dollar sign
            figure = draw()
            if figure is not None:
                figure.savefig(folder / name, dpi=110, bbox_inches="tight")
                drawn[caption] = folder / name
    return drawn


def _swap(arms: list[ArmSummary]) -> Figure | None:
    probed = [arm for arm in arms if "swap" in arm.found]
    if not probed:
        return None
    figure = Figure(figsize=(7, 0.6 + 0.5 * len(probed)))
    axis = figure.subplots()
    for y, arm in enumerate(probed):
        swap = arm.found["swap"]
        axis.barh(y, swap.mean, color=_colour(y), height=0.55, alpha=0.75)
        _whisker(axis, y, swap)
        axis.plot(swap.values, [y] * len(swap.values), ".", color="black", ms=4)
        if "null" in arm.found:
            axis.plot(arm.found["null"].mean, y, "D", color="white", mec="black", ms=5)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(probed)), [arm.name for arm in probed])
    axis.invert_yaxis()
    axis.set_xlabel("change of loss, nats per RoI")
    return figure


def _whisker(axis: Axes, y: float, estimate: Estimate) -> None:
    if estimate.low == estimate.low:
        axis.plot([estimate.low, estimate.high], [y, y], color="black", lw=1.5)


def _ap(runs: dict[str, list[dict]]) -> Figure | None:
    found = {
        kind: [
            over_seeds(_present(evaluation(r, kind, "bbox", "AP") for r in runs[arm]))
            for arm in runs
        ]
        for kind in KINDS
    }
    found = {kind: values for kind, values in found.items() if any(values)}
    return _grouped_bars(list(runs), found, "box AP") if found else None


def _decomposition(runs: dict[str, list[dict]]) -> Figure | None:
    rows = {
        arm: [row for run in each for row in _probe(run, "decomposition").get("rows", ())]
        for arm, each in runs.items()
    }
    rows = {arm: each for arm, each in rows.items() if each}
    if not rows:
        return None
    splits = list(dict.fromkeys(row["split"] for each in rows.values() for row in each))
    figure = Figure(figsize=(3.2 * len(rows), 3.2))
    axes = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
    for axis, (arm, each) in zip(axes, rows.items(), strict=True):
        for i, split in enumerate(splits):
            heights = [
                [r["loss"] for r in each if (r["split"], r["statistics"]) == (split, kind)]
                for kind in STATISTICS
            ]
            at = np.arange(len(STATISTICS)) + (i - (len(splits) - 1) / 2) * 0.38
            axis.bar(at, [_mean(h) for h in heights], 0.36, color=_colour(i), label=split)
            for x, values in zip(at, heights, strict=True):
                axis.plot([x] * len(values), values, ".", color="black", ms=3)
        axis.set_xticks(range(len(STATISTICS)), STATISTICS)
        axis.set_title(arm, fontsize=9)
    axes[0].set_ylabel("classification loss, nats")
    axes[-1].legend(fontsize=8)
    return figure


def _layers(runs: dict[str, list[dict]]) -> Figure | None:
    """Bits by layer and label."""
    bits: dict[str, dict[tuple[str, str], list[float]]] = {}
    null: dict[tuple[str, str], list[float]] = {}
    for arm, each in runs.items():
        for run in each:
            for layer in _probe(run, "statistics_probe").get("layers", ()):
                key = layer["name"], layer["label"]
                bits.setdefault(arm, {}).setdefault(key, []).append(layer["bits"])
                null.setdefault(key, []).append(layer["null_std"])
    if not bits:
        return None
    found = {arm: [over_seeds(layers.get(key, ())) for key in null] for arm, layers in bits.items()}
    names = _without_shared_prefix([name for name, _ in null])
    labels = [f"{name}\n{label}" for name, (_, label) in zip(names, null, strict=True)]
    figure = _grouped_bars(labels, found, "bits beyond permuted labels")
    for x, spreads in enumerate(null.values()):
        for sign in (-1.96, 1.96):
            level = sign * _mean(spreads)
            figure.axes[0].plot([x - 0.45, x + 0.45], [level, level], "k--", lw=0.8)
    return figure


def _curves(runs: dict[str, list[dict]]) -> Figure | None:
    figure = Figure(figsize=(7, 3.6))
    axis = figure.subplots()
    for number, (arm, each) in enumerate(runs.items()):
        curves = [c for run in each if "loss_cls" in (c := run.get("curves") or {})]
        if not curves:
            continue
        length = min(len(c["iteration"]) for c in curves)
        values = np.array([c["loss_cls"][:length] for c in curves])
        iterations = curves[0]["iteration"][:length]
        axis.plot(iterations, values.mean(0), color=_colour(number), label=arm)
        if len(curves) > 1:
            low, high = values.min(0), values.max(0)
            axis.fill_between(iterations, low, high, color=_colour(number), alpha=0.15, lw=0)
    if not axis.lines:
        return None
    axis.set_xlabel("iteration")
    axis.set_ylabel("training loss (class), nats")
    axis.legend(fontsize=8)
    return figure


def _grouped_bars(
    groups: list[str], series: dict[str, list[Estimate | None]], label: str
) -> Figure:
    """A bar for each series within each group, with dots for seeds and whiskers for intervals."""
    figure = Figure(figsize=(max(5.0, 1.5 * len(groups) + 1), 3.6))
    axis = figure.subplots()
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        at = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        means = [v.mean if v else np.nan for v in values]
        axis.bar(at, means, 0.92 * width, color=_colour(number), label=name)
        for x, value in zip(at, values, strict=True):
            if value is None:
                continue
            axis.plot([x] * len(value.values), value.values, ".", color="black", ms=3)
            if value.low == value.low:
                axis.plot([x, x], [value.low, value.high], color="black", lw=1)
    axis.set_xticks(range(len(groups)), [_wrapped(g) for g in groups], fontsize=8)
    axis.set_ylabel(label)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _without_shared_prefix(names: list[str]) -> list[str]:
    """Module names without the parents that all have in common."""
    parents = [name.split(".")[:-1] for name in names]
    levels = zip(*parents, strict=False)
    shared = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))
    return [".".join(name.split(".")[shared:]) for name in names]


def _wrapped(text: str) -> str:
    words = text.split(" ")
    return "\n".join(" ".join(words[i : i + 2]) for i in range(0, len(words), 2))


def _colour(number: int) -> str:
    return f"C{number % 10}"


def _probe(run: dict, name: str) -> dict:
    return (run.get("probes") or {}).get(name) or {}


def _present(values) -> list[float]:
    return [v for v in values if v is not None]


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else float("nan")
