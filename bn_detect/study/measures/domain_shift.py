"""The measure "domain_shift": a checkpoint on corrupted images, under the statistics of others.

A cell is one evaluation: the evaluated data, and the images that the population statistics come
from. A domain is "clean" or a corruption with its severity, such as "fog_3". Where those images are
some of the evaluated dataset, no cell is evaluated on them; where they are all of it, every cell is
evaluated on all.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn
from tqdm import tqdm

from ...data import DatasetSummary, register_corrupted, register_derived
from ...data.checks.check import check_registered
from ...data.corrupted import corrupted_name
from ...engine.domain_shift import evaluate_on, with_statistics_of
from ...engine.target_images import check_num_images
from ...population.bn_layers import select_bn_layers
from ...reporting.columns import Column, Result
from ...reporting.drawing import Picture
from .domain_table import ALL, CHECKPOINT, CLEAN, draw, plan, score, tables
from .measure import Measure, Options
from .subject import Subject


def domain_shift(subject: Subject, options: Options, kept: Result) -> Iterator[dict[str, Any]]:
    """Yield the options, and the metrics of each missing cell by its key; a collective."""
    yield {"options": dict(options)}
    cfg, model = subject.cfg, subject.model
    evaluated = cfg.DATASETS.TEST[0]
    images_of = options["images_of"] or evaluated
    held_out = _held_out(options, evaluated)
    missing = [c for c in plan(options) if kept.get(c.key, {}).get("held_out") != held_out]
    register(options, evaluated, images_of)
    with tqdm(total=len(missing), unit="cell") as progress:
        for (statistics, images), cells in groupby(missing, lambda c: (c.statistics, c.images)):
            with contextlib.ExitStack() as stack:
                if statistics != CHECKPOINT:
                    name = _dataset(images_of, statistics)
                    number = None if images == ALL else int(images)
                    stack.enter_context(with_statistics_of(cfg, model, name, number))
                for cell in cells:
                    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                        name = _dataset(evaluated, cell.data) + f"@-{held_out}" * (held_out > 0)
                        register_derived([name])
                        metrics = evaluate_on(cfg, model, name, subject.folder / "inference")
                    yield {cell.key: {**metrics, "held_out": held_out}}
                    progress.update()


def register(options: Options, *names: str) -> None:
    """Register the corrupted versions of these datasets."""
    for name in names:
        register_derived([name])
        for corruption in options["corruptions"]:
            for severity in options["severities"]:
                register_corrupted(name, corruption, severity)


def _held_out(options: Options, evaluated: str) -> int:
    """Return how many images are for statistics only, so that nothing is evaluated on them."""
    numbers = options["num_images"]
    same = (options["images_of"] or evaluated) == evaluated
    return max(numbers) if same and ALL not in numbers else 0


def _dataset(name: str, domain: str) -> str:
    if domain == CLEAN:
        return name
    corruption, _, severity = domain.rpartition("_")
    return corrupted_name(name, corruption, int(severity))


def _check(cfg: CfgNode, model: nn.Module, options: Options) -> None:
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"DATASETS.TEST is {cfg.DATASETS.TEST}; one dataset is needed")
    if cfg.MODEL.ROI_BN.TEST_STATS != "population":
        raise ValueError(
            f"MODEL.ROI_BN.TEST_STATS is {cfg.MODEL.ROI_BN.TEST_STATS!r}, which uses no population "
            "statistics; use 'population'"
        )
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(
            "MODEL.LOAD_PROPOSALS is True, but the images of other domains have no file of "
            "proposals; use a model that makes its own"
        )
    for key in ("corruptions", "severities", "num_images"):
        if not isinstance(options[key], list) or (not options[key] and key != "corruptions"):
            raise ValueError(f"domain_shift: {key} is {options[key]!r}; it must be a list")
    if bad := [n for n in options["num_images"] if n != ALL and (type(n) is not int or n < 1)]:
        raise ValueError(
            f"domain_shift: num_images holds {bad[0]!r}; it may hold numbers and {ALL}"
        )
    select_bn_layers(model, cfg.TEST.PRECISE_BN.MODULES or None)
    register(options, cfg.DATASETS.TEST[0])


def check_images(
    cfg: CfgNode, options: Options, datasets: Mapping[str, DatasetSummary], workers: int
) -> None:
    """Raise ValueError where `images_of` is not registered, the workers cannot share a number of
    images, or none are left to evaluate on; reads the dataset."""
    evaluated = cfg.DATASETS.TEST[0]
    dataset = options["images_of"] or evaluated
    try:
        register_derived([dataset])
        check_registered(dataset)
    except ValueError as error:
        raise ValueError(f"images_of is {dataset!r}: {error}") from error
    available = len(DatasetCatalog.get(dataset))
    if _held_out(options, evaluated) == available:
        raise ValueError(
            f"{available} images for population statistics of {dataset!r}: no other is left to "
            "evaluate on; use fewer"
        )
    for number in options["num_images"]:
        if number != ALL:
            check_num_images(
                int(number), workers * cfg.MODEL.ROI_BN.VIRTUAL_WORKERS, available, dataset
            )


def _columns(options: Options) -> tuple[Column, ...]:
    """A column for each cell, for claims; its key is the cell's."""

    def value(key: str, result: Result) -> float | None:
        return score(result[key])[1] if key in result else None

    means = "AP, or of a classifier top-1 error, of the evaluated images under these statistics."
    return tuple(
        Column(cell.key, f"{cell.key} (%)", 1, partial(value, cell.key), means, shown=False)
        for cell in plan(options)
    )


MEASURE = Measure(
    domain_shift,
    columns_for=_columns,
    figures=(
        Picture(
            "domain_shift",
            "Each data under the statistics of each domain (left), and under the checkpoint's and "
            "its own (right).",
            draw,
        ),
    ),
    tables=tables,
    options={
        "corruptions": ["contrast", "gaussian_noise", "jpeg_compression"],
        "severities": [3],
        "num_images": [ALL],
        "images_of": None,
    },
    check=_check,
    check_images=check_images,
    every_worker=True,
    grows=("corruptions", "severities", "num_images"),
)
