"""Datasets that a study makes where they are missing."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..data import TilingOptions, prepare_digits, prepare_neon_trees
from ..data.datasets.leaky_shapes import LeakyShapesOptions, prepare_leaky_shapes
from ..data.datasets.neon_trees import default_root
from .plan import Study

LEAKY_SHAPES = "leaky_shapes"  # and any name that begins so and goes on with _
NEON_TREES = "neon_trees"


@dataclass
class NoOptions:
    pass


def prepare_datasets(study: Study) -> None:
    """Make the study's datasets under $DETECTRON2_DATASETS, unless they are there.

    Raises:
        ValueError: one is there with other options, or cannot be made.
    """
    for name, options in study.datasets.items():
        kind, prepare = _maker(study, name)
        made = prepare(_options(study, name, kind, options))
        print(f"dataset {name}: {'prepared' if made else 'already prepared'}", flush=True)


def check_dataset_options(study: Study) -> None:
    """Raise ValueError for a dataset that cannot be made; names the study's file, key and value."""
    for name, options in study.datasets.items():
        _options(study, name, _maker(study, name)[0], options)


def _maker(study: Study, name: str) -> tuple[type, Callable[[Any], bool]]:
    if name == NEON_TREES:
        return TilingOptions, lambda options: prepare_neon_trees(default_root(), options)
    if name == LEAKY_SHAPES or name.startswith(f"{LEAKY_SHAPES}_"):
        return LeakyShapesOptions, lambda options: prepare_leaky_shapes(
            default_root(), options, name=name
        )
    if name == "digits":
        return NoOptions, lambda options: prepare_digits()
    raise ValueError(
        f"{study.file}: datasets: {name!r} is none that can be made ({NEON_TREES}, {LEAKY_SHAPES}, "
        f"{LEAKY_SHAPES}_*); other registered datasets need not be listed"
    )


def _options(study: Study, name: str, kind: type, given: dict[str, Any]) -> Any:
    known = [f.name for f in fields(kind)]
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            advice = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{study.file}: datasets: {name}: {key}: {value!r}: no such option; there are "
                f"{', '.join(known)}{advice}"
            )
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{study.file}: datasets: {name}: {error}") from error
