"""NEON trees: aerial images with hand-drawn boxes around trees, as a small COCO-format dataset.

One image is cut into tiles for training and another, of another place, into tiles for validation.
Layout: `{train,val}/*.png`, `annotations/neon_trees_{train,val}.json`, `overview_{train,val}.jpg`
and `prepared.json` (options, source, counts).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .deepforest_wheel import (LICENCE, REQUIREMENT, SOURCES, WHEEL_SHA256, read_sources)
from ..overview import draw_overview
from ..prepared import (default_root, prepare_folder)
from ..registration import register_prepared
from ..checks.summary import (DatasetSummary, summarize)
from .tiling import (Window, clip_boxes, tile_windows)

FOLDER = "neon_trees"
SPLITS = tuple(SOURCES)
RECIPE = 1  # raised when the same options give other files than before


@dataclass(frozen=True)
class TilingOptions:
    """How the images are cut.

    Attributes:
        tile: largest side of a tile, in pixels. The tiles of an image are of one size (to a pixel),
            the largest that covers it exactly; see `tile_spans`.
        overlap: pixels that neighbouring training tiles share. Validation tiles share none, so no
            tree counts twice in AP.
        min_visible: a box counts in a tile that shows more than this share of its area (it is
            clipped to the tile), in [0, 1). From 0.5 up it counts in one validation tile at most.
        edge_boxes: what becomes of a box of which a tile shows less: "ignore" keeps it with
            iscrowd=1, so that detecting what is left of the tree is neither right nor wrong
            (Detectron2 trains without such boxes); "drop" leaves it out.

    Raises:
        ValueError: a value outside its range.
    """

    tile: int = 256
    overlap: int = 64
    min_visible: float = 0.5
    edge_boxes: str = "ignore"

    def __post_init__(self) -> None:
        if self.tile < 32:
            raise ValueError(f"tile must be at least 32 px, got {self.tile}")
        if not 0 <= self.overlap < self.tile:
            raise ValueError(f"overlap must be in [0, tile={self.tile}) px, got {self.overlap}")
        if not 0 <= self.min_visible < 1:
            raise ValueError(f"min_visible must be in [0, 1), got {self.min_visible}")
        if self.edge_boxes not in ("ignore", "drop"):
            raise ValueError(f"edge_boxes must be 'ignore' or 'drop', got {self.edge_boxes!r}")


def register_neon_trees(root: str | Path | None = None, *, replace: bool = True) -> None:
    """Register `neon_trees_train` and `neon_trees_val`; see `register_prepared`."""
    register_prepared(FOLDER, SPLITS, root, replace=replace, thing_classes=["tree"])


def prepare_neon_trees(
    root: str | Path | None = None,
    options: TilingOptions | None = None,
    *,
    wheel: str | Path | None = None,
    force: bool = False,
) -> bool:
    """Make the dataset in `root`/neon_trees, unless it is there already.

    It is built in a hidden folder beside its place and moved there when complete, so a run that is
    killed leaves nothing half made. Of several runs at once, one prepares and the others wait.

    Args:
        root: default: `default_root()`.
        wheel: the wheel of deepforest; default: it is downloaded with pip.
        force: rebuild what was prepared before, whatever its options.

    Returns:
        whether it was made now; False: it was there, with the same options.

    Raises:
        DatasetError: it is there with other options, the place is taken by something else, or the
            wheel cannot be had or is not the right one.
    """
    root = Path(root) if root is not None else default_root()
    options = options or TilingOptions()
    wheel = None if wheel is None else Path(wheel)
    return prepare_folder(
        root / FOLDER,
        RECIPE,
        asdict(options),
        lambda folder: _build(folder, options, wheel),
        force=force,
    )


def _build(folder: Path, options: TilingOptions, wheel: Path | None) -> dict[str, Any]:
    sources = read_sources(wheel)
    (folder / "annotations").mkdir()
    counts = {}
    for split, (image, boxes) in sources.items():
        overlap = options.overlap if split == "train" else 0
        windows = tile_windows(*image.size, options.tile, overlap)
        coco = tiles_to_coco(SOURCES[split].site, windows, boxes, options)
        (folder / f"annotations/{FOLDER}_{split}.json").write_text(json.dumps(coco))
        _save_tiles(folder / split, image, windows, coco)
        _overview(image, windows, coco).save(folder / f"overview_{split}.jpg", quality=90)
        summary = summarize(f"{FOLDER}_{split}", coco)
        counts[split] = {"source_boxes": len(boxes), **asdict(summary)}
    return {
        "source": {"requirement": REQUIREMENT, "licence": LICENCE, "sha256": WHEEL_SHA256},
        "files": {split: asdict(source) for split, source in SOURCES.items()},
        "counts": counts,
    }


def tiles_to_coco(
    site: str, windows: list[Window], boxes: np.ndarray, options: TilingOptions
) -> dict[str, Any]:
    """The COCO JSON of an image that is cut into `windows`.

    Each annotation has, beside COCO's keys, `tree`: the row of `boxes` it comes from.

    Args:
        site: the file of a tile is named `{site}_x{x0}_y{y0}.png`.
        boxes: (N, 4) x0, y0, x1, y1 in the image's pixels.
    """
    images, annotations = [], []
    for image_id, window in enumerate(windows, start=1):
        images.append(
            {
                "id": image_id,
                "file_name": f"{site}_x{window.x0:04d}_y{window.y0:04d}.png",
                "width": window.x1 - window.x0,
                "height": window.y1 - window.y0,
                "license": 1,
            }
        )
        clipped, visible = clip_boxes(boxes, window)
        for tree in np.flatnonzero(visible > 0).tolist():
            counts = visible[tree] == 1 or visible[tree] > options.min_visible
            if not counts and options.edge_boxes == "drop":
                continue
            x0, y0, x1, y1 = clipped[tree].tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0 if counts else 1,
                    "tree": tree,
                }
            )
    return {
        "info": {"description": f"NEON trees, {site}, tiles from {REQUIREMENT}"},
        "licenses": [{"id": 1, "name": LICENCE}],
        "categories": [{"id": 1, "name": "tree"}],
        "images": images,
        "annotations": annotations,
    }


def _save_tiles(folder: Path, image: Image.Image, windows: list[Window], coco: dict) -> None:
    folder.mkdir()
    tiles = zip(windows, coco["images"], strict=True)
    for window, entry in tqdm(tiles, f"{folder.name} tiles", total=len(windows), unit="tile"):
        image.crop(window).save(folder / entry["file_name"])


def _overview(image: Image.Image, windows: list[Window], coco: dict) -> Image.Image:
    """The annotations as written, put back to where their tiles were cut from."""
    corner = {entry["id"]: w[:2] for entry, w in zip(coco["images"], windows, strict=True)}
    boxes = np.array([a["bbox"] for a in coco["annotations"]]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes += np.array([corner[a["image_id"]] * 2 for a in coco["annotations"]]).reshape(-1, 4)
    ignored = np.array([a["iscrowd"] for a in coco["annotations"]], dtype=bool)
    return draw_overview(image, windows, boxes, ignored)


def prepared_summaries(root: str | Path | None = None) -> list[DatasetSummary]:
    """The summaries of what lies prepared in `root`/neon_trees, one per split."""
    folder = (Path(root) if root is not None else default_root()) / FOLDER / "annotations"
    names = [f"{FOLDER}_{split}" for split in SPLITS]
    return [summarize(name, json.loads((folder / f"{name}.json").read_text())) for name in names]
