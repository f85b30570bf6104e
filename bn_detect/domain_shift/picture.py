"""The table as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ..runtime.files import write_atomically
from .cells import CHECKPOINT, CLEAN, Cell
from .summary import Place, score


def draw(
    cells: Mapping[Place, Cell],
    corruptions: Sequence[str],
    num_images: Sequence[int],
    path: Path,
) -> None:
    """Write a PNG: all data x all statistics, and each data under its own over images."""
    domains, most = [CLEAN, *corruptions], max(num_images)
    name, _, more_is_better = score(next(iter(cells.values())).metrics)
    figure = Figure(figsize=(10, 1.8 + 0.45 * len(domains)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])

    columns = [(CHECKPOINT, 0), *((domain, most) for domain in domains)]
    values = [[score(cells[d, s, n].metrics)[1] for s, n in columns] for d in domains]
    # Each row by its own range: rows differ more than columns, which are what is compared.
    shades = [[(v - min(row)) / max(max(row) - min(row), 1e-9) for v in row] for row in values]
    left.imshow(shades, cmap="Blues" if more_is_better else "Blues_r", vmax=1.6, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            left.text(x, y, f"{value:.1f}", ha="center", va="center")
    labels = [_label(statistics) for statistics, _ in columns]
    left.set_xticks(range(len(columns)), labels, rotation=30, ha="right")
    left.set_yticks(range(len(domains)), [_label(domain) for domain in domains])
    left.set_xlabel(f"population statistics ({most} images)")
    left.set_title(f"{name} of evaluated data (shade: within a row)", fontsize=10)

    for i, domain in enumerate(domains):
        colour = mpl.color_sequences["tab10"][i % 10]
        numbers = sorted(num_images)
        own = [score(cells[domain, domain, n].metrics)[1] for n in numbers]
        right.plot(numbers, own, "o-", color=colour, label=_label(domain))
        right.axhline(score(cells[domain, CHECKPOINT, 0].metrics)[1], color=colour, ls="--", lw=1)
    right.set_xscale("log")
    right.set_xlabel("images for the statistics")
    right.set_ylabel(name)
    right.set_title("own statistics; dashed: the checkpoint's", fontsize=10)
    right.legend(fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def _label(domain: str) -> str:
    return domain.replace("_", " ")
