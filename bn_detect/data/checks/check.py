"""Check registered datasets before time is spent on them."""

import difflib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager

from ...runtime.files import as_folder_name
from ..errors import DatasetError
from ..metadata import CLASSIFICATION, EMPTY_BOXES, EVALUATORS, UNLABELLED
from ..prepared import RECORD, default_root
from ..registration import SPLITS
from .coco_content import Coco, content_faults, form_faults, read_coco_json, without_empty_boxes
from .dataset_dicts import dicts_to_coco
from .image_files import image_faults
from .keypoints import keypoint_metadata_faults
from .memory import check_key, recall, remember
from .needs import Needs, needs_of
from .summary import DatasetSummary, summarize

logger = logging.getLogger(__name__)

FAULTS_SHOWN = 5
LARGE = 5000  # more images than this: only their headers are read, and success is remembered
_REMEDY = (
    "prepare or import it with `bn-detect data`, or name the module that registers it by --import"
)
COCO_STYLE = ("coco", "coco_panoptic_seg")  # the evaluators whose datasets have a COCO json_file


def check_datasets(names: Sequence[str], cfg: CfgNode | None = None) -> dict[str, DatasetSummary]:
    """Check each dataset once, as `check_dataset` does; call it on one rank, before training.

    Returns:
        their summaries, by name.

    Raises:
        DatasetError: of the first faulty dataset, or there is no object to train on.
    """
    summaries = {name: check_dataset(name, cfg) for name in dict.fromkeys(names)}
    for name, summary in summaries.items():
        for warning in summary.warnings:
            logger.warning("dataset %r: %s", name, warning)
    if cfg is not None:
        _check_objects(cfg, [s for name, s in summaries.items() if name in cfg.DATASETS.TRAIN])
    return summaries


def check_uses(uses: Iterable[tuple[CfgNode, Sequence[str]]]) -> dict[str, DatasetSummary]:
    """Check the datasets of several configs: each dataset once for each way in which it is used.

    Args:
        uses: pairs of a config and the names of the datasets that it reads.

    Returns:
        their summaries, by name.

    Raises:
        DatasetError: see `check_datasets`.
    """
    summaries: dict[str, DatasetSummary] = {}
    done: set[tuple[str, Needs]] = set()
    for cfg, names in uses:
        wanted = {(name, needs_of(cfg, name)) for name in names}
        if not wanted <= done:
            summaries |= check_datasets(names, cfg)
            done |= wanted
    return summaries


def check_dataset(name: str, cfg: CfgNode | None = None) -> DatasetSummary:
    """Check that a registered dataset can be trained and evaluated on, and summarize it.

    COCO-style datasets are checked as their JSON is; others as the dataset dicts that they load.
    Images are opened and their sizes compared; all pixels are read where there are at most `LARGE`
    images. For a larger COCO-style dataset, success is remembered until its JSON or image folder
    changes. For a larger classification dataset, `LARGE` images are opened, evenly spread over it.

    Args:
        cfg: the config that uses it. It says whether the dataset is trained and evaluated on, and
            whether masks and keypoints matter. None checks boxes, and the form of the others.

    Raises:
        ValueError: the name cannot be that of a folder, which results are written to.
        DatasetError: the dataset is not registered, missing, or faulty. The message names the file,
            and the first faults with the ids of their images and annotations.
    """
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    needs = Needs() if cfg is None else needs_of(cfg, name)
    raise_faults(f"dataset {name!r}", _metadata_faults(metadata, needs))
    if metadata.get("evaluator_type") in COCO_STYLE and metadata.get("json_file"):
        return _check_coco(name, metadata, needs)
    return _check_dicts(name, metadata, needs)


def check_registered(name: str) -> None:
    """Raise ValueError for a name that no registered dataset has, or that no folder can have."""
    as_folder_name(name, "dataset")
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, _names())
        advice = f"did you mean {', '.join(close)}?" if close else _REMEDY
        raise DatasetError(f"dataset {name!r} is not registered: {advice}")


def _names() -> set[str]:
    """Return the names of what is registered, and of what was prepared or imported before."""
    folders = [record.parent.name for record in default_root().glob(f"*/{RECORD}")]
    return {*DatasetCatalog.list(), *(f"{name}_{split}" for name in folders for split in SPLITS)}


def _metadata_faults(metadata: Metadata, needs: Needs) -> Iterator[str]:
    kind = metadata.get("evaluator_type")
    if needs.evaluated and kind not in EVALUATORS:
        yield (
            f"its evaluator_type is {kind!r}, so it cannot be in DATASETS.TEST; supported are "
            f"{', '.join(EVALUATORS)}: set it in Detectron2's MetadataCatalog"
        )
    if needs.evaluated and kind == "lvis" and importlib.util.find_spec("lvis") is None:
        yield "its evaluator_type 'lvis' needs the package lvis: pip install lvis"
    if needs.evaluated and kind == "pascal_voc":
        lacking = [k for k in ("dirname", "split", "year") if metadata.get(k) is None]
        if lacking:
            yield f"its evaluator_type 'pascal_voc' needs the metadata {', '.join(lacking)}"
    yield from keypoint_metadata_faults(metadata, needs)


def _check_objects(cfg: CfgNode, trained: Sequence[DatasetSummary]) -> None:
    """Raise DatasetError where Detectron2 would find no image to train on."""
    kinds = {MetadataCatalog.get(s.name).get("evaluator_type") for s in trained}
    if not trained or CLASSIFICATION in kinds or any(s.annotations for s in trained):
        return
    names = ", ".join(repr(s.name) for s in trained)
    ignored = sum(s.ignored for s in trained)
    raise DatasetError(
        f"DATASETS.TRAIN: {names}: no object to train on, for there are no annotations"
        + (f" but {ignored} with iscrowd=1" if ignored else "")
        + ": choose datasets with objects"
    )


def _check_coco(name: str, metadata: Metadata, needs: Needs) -> DatasetSummary:
    json_file = Path(os.path.abspath(PathManager.get_local_path(metadata.json_file)))
    image_root = Path(os.path.abspath(metadata.get("image_root") or "."))
    for kind, path in (("JSON file", json_file), ("image folder", image_root)):
        if not path.exists():
            remedy = metadata.get("remedy", "this is where the dataset was registered")
            raise DatasetError(f"dataset {name!r}: {kind} {path} is missing; {remedy}")
    key = check_key(name, json_file, image_root, needs)
    remembered = recall(key)
    if remembered is not None:
        return remembered

    tolerated = metadata.get("tolerated", ())
    coco = read_coco_json(json_file, labelled=UNLABELLED not in tolerated)
    raise_faults(f"dataset {name!r} ({json_file})", form_faults(coco))
    warnings = [] if needs.evaluated else _evaluation_warnings(coco)
    if any(annotation["id"] == 0 for annotation in coco["annotations"]):
        warnings.append("annotation id 0: COCO evaluation counts its detection as a false one")
    checked = coco
    if EMPTY_BOXES in tolerated:
        checked = without_empty_boxes(coco)
        empty = len(coco["annotations"]) - len(checked["annotations"])
        if empty:
            warnings.append(f"{empty} boxes have no positive area; training drops them")
    faults = list(content_faults(checked, needs, tolerated))
    faults += _class_faults(coco, metadata)
    large = len(coco["images"]) > LARGE
    label = f"checking {name}"
    faults += image_faults(coco["images"], image_root, needs, decode=not large, label=label)
    raise_faults(f"dataset {name!r} ({json_file})", faults)
    summary = summarize(name, coco, warnings)
    if large:
        remember(key, summary)
    return summary


def _check_dicts(name: str, metadata: Metadata, needs: Needs) -> DatasetSummary:
    try:
        dicts = DatasetCatalog.get(name)
    except Exception as error:  # a loader is anybody's code
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DatasetError(f"dataset {name!r} cannot be loaded: {said}") from error
    kind = metadata.get("evaluator_type")
    coco = dicts_to_coco(dicts, metadata.get("thing_classes") or metadata.get("classes"))
    optional = {"annotations", "categories", "width", "height", "category_id", "bbox"}
    if kind != CLASSIFICATION and needs.trained:
        optional -= {"category_id"}
    if kind == "coco" and needs.evaluated:  # Detectron2 makes a COCO JSON of them
        optional -= {"width", "height", "category_id"}
        if metadata.get("thing_classes") is None:
            raise DatasetError(f"dataset {name!r}: its metadata has no thing_classes")
    raise_faults(f"dataset {name!r}", form_faults(coco, optional))
    faults = list(content_faults(coco, needs, in_json=False))
    images, large = coco["images"], len(coco["images"]) > LARGE
    if large and kind == CLASSIFICATION:
        images = [images[i * len(images) // LARGE] for i in range(LARGE)]
    label = f"checking {name}"
    faults += image_faults(images, Path(), needs, decode=not large, label=label)
    raise_faults(f"dataset {name!r}", faults)
    return summarize(name, coco)


def raise_faults(where: str, faults: Iterable[str]) -> None:
    """Raise DatasetError with the first faults, and the number of all, if there are any."""
    faults = list(faults)
    if not faults:
        return
    shown = "; ".join(faults[:FAULTS_SHOWN]).replace("\n", "\\n")  # of a file's name
    if len(faults) > FAULTS_SHOWN:
        shown += f"; and {len(faults) - FAULTS_SHOWN} more"
    raise DatasetError(f"{where}: {len(faults)} fault{'s' * (len(faults) > 1)}: {shown}")


def _class_faults(coco: Coco, metadata: Metadata) -> list[str]:
    """Return a fault if the categories are not those of the registration; Detectron2 refuses it."""
    listed = [c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])]
    registered = metadata.get("thing_classes")
    if registered is None or list(registered) == listed:
        return []
    return [f"its categories {_some(listed)} are not the registered {_some(registered)}"]


def _some(names: Sequence[str]) -> str:
    return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; {len(names)} in all)"


def _evaluation_warnings(coco: Coco) -> list[str]:
    """Return what training does not need, but COCO evaluation does."""
    warnings = []
    for key in ("area", "iscrowd"):
        lacking = [a["id"] for a in coco["annotations"] if key not in a]
        if lacking:
            warnings.append(
                f"{len(lacking)} annotations (the first: {lacking[0]!r}) have no {key!r}: "
                f"COCO evaluation on this dataset fails"
            )
    return warnings
