"""Register a dataset with corrupted images, which are made as they are read or kept on disk."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..runtime.files import as_folder_name
from .corruptions import SMALLEST, check_corruption
from .errors import DatasetError
from .mapper import read_image
from .metadata import CLASSIFICATION, share_metadata
from .prepared import RECORD, default_root, prepare_folder, read_record

RECIPE = 1
DatasetDicts = list[dict[str, Any]]


def register_corrupted(name: str, corruption: str, severity: int) -> str:
    """Register dataset NAME_corrupted_TYPE_SEVERITY, and return its name.

    Its dicts and metadata are NAME's. The images are the files of `write_corrupted` where it was
    called before; otherwise the dicts tell `read_image` and `BNDatasetMapper` to corrupt them. Both
    ways give the same pixels.

    Args:
        name: any registered dataset whose dicts have "file_name".
        corruption, severity: see `corrupt`.

    Raises:
        ValueError: an unknown corruption or severity. Images that are too small are found when the
            dataset is read.
    """
    check_corruption(corruption, severity)
    derived = corrupted_name(name, corruption, severity)
    if derived not in DatasetCatalog:
        DatasetCatalog.register(derived, lambda: _load(name, corruption, severity))
        share_metadata(name, derived)
    return derived


def corrupted_name(name: str, corruption: str, severity: int) -> str:
    """Return the name of a corrupted dataset, which is also the name of its folder.

    Raises:
        ValueError: a folder cannot have this name.
    """
    return as_folder_name(f"{name}_corrupted_{corruption}_{severity}", "dataset")


def write_corrupted(name: str, corruption: str, severity: int, *, force: bool = False) -> bool:
    """Write the corrupted images of a registered dataset into $DETECTRON2_DATASETS, as PNG files.

    The folder has the name of the corrupted dataset. It appears whole or not at all.

    Args:
        force: replace the folder if it is there.

    Returns:
        whether it was made now.

    Raises:
        ValueError: as `register_corrupted`, something else is in its place, or the dataset is one
            for classifiers, whose images are corrupted after they are resized and cropped.
    """
    check_corruption(corruption, severity)
    if MetadataCatalog.get(name).get("evaluator_type") == CLASSIFICATION:
        raise ValueError(
            f"dataset {name!r} is for classifiers, whose images are corrupted as they are read, "
            f"after resizing and cropping: use {corrupted_name(name, corruption, severity)!r} as "
            "it is"
        )
    dicts = DatasetCatalog.get(name)
    _check_sizes(name, dicts)
    files = _files_within(dicts)

    def write(dataset_dict: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = read_image({**dataset_dict, "corruption": (corruption, severity)}, "RGB")
        Image.fromarray(image).save(path)

    def build(folder: Path) -> dict[str, Any]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(write, dicts, [folder / file for file in files])
            list(tqdm(done, f"{corruption} {severity}", len(dicts), unit="image"))
        return {"images": len(dicts)}

    options = {"dataset": name, "corruption": corruption, "severity": severity}
    target = default_root() / corrupted_name(name, corruption, severity)
    return prepare_folder(target, "corrupted", RECIPE, options, build, force=force)


def _load(name: str, corruption: str, severity: int) -> DatasetDicts:
    derived = corrupted_name(name, corruption, severity)
    dicts = DatasetCatalog.get(name)
    share_metadata(name, derived)
    folder = default_root() / derived
    if not (folder / RECORD).is_file():
        _check_sizes(name, dicts)
        return [{**d, "corruption": (corruption, severity)} for d in dicts]
    written = read_record(folder).get("images")
    if written != len(dicts):
        raise DatasetError(
            f"{folder} holds {written} images, but {name} has {len(dicts)}: make it anew with "
            f"`bn-detect data corrupted --dataset {name} --corruption {corruption} "
            f"--severity {severity} --force`"
        )
    files = _files_within(dicts)
    return [{**d, "file_name": str(folder / f)} for d, f in zip(dicts, files, strict=True)]


def _files_within(dicts: DatasetDicts) -> list[str]:
    """Return the path of each corrupted copy in its folder; it mirrors that of the original."""
    paths = [os.path.abspath(d["file_name"]) for d in dicts]
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    within = [os.path.relpath(path, common) for path in paths]
    stems = [os.path.splitext(path)[0] for path in within]
    unique = len(set(stems)) == len(set(within))
    return [f"{path}.png" for path in (stems if unique else within)]


def _check_sizes(name: str, dicts: DatasetDicts) -> None:
    for d in dicts:
        width, height = d.get("width", SMALLEST), d.get("height", SMALLEST)
        if min(width, height) < SMALLEST:
            raise DatasetError(
                f"dataset {name!r}: {d['file_name']} is {width}x{height} px; corruptions need "
                f"images of at least {SMALLEST} px each way"
            )
