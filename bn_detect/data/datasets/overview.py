"""Pictures of a prepared dataset, in which a person can check its boxes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .tiling import Window

COUNTED, IGNORED, GRID = (255, 60, 60), (60, 200, 255), (255, 255, 255)


def draw_overview(
    image: Image.Image, windows: list[Window], boxes: np.ndarray, ignored: np.ndarray
) -> Image.Image:
    """Return a copy of the image with tiles in white, counted boxes in red, ignored ones in blue.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in the image's pixels.
        ignored: (N,) bool.
    """
    picture = image.copy()
    draw = ImageDraw.Draw(picture)
    for window in windows:
        draw.rectangle(window, outline=GRID)
    for box in boxes[ignored]:
        draw.rectangle(tuple(box), outline=IGNORED, width=2)
    for box in boxes[~ignored]:
        draw.rectangle(tuple(box), outline=COUNTED, width=2)
    return picture


def contact_sheet(folder: Path, coco: dict[str, Any], columns: int = 4) -> Image.Image:
    """Return the first 8 images of a split side by side, with their boxes and category ids."""
    tiles = [_annotated(folder, entry, coco) for entry in coco["images"][: 2 * columns]]
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(tiles)), height * rows))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, number // columns * height))
    return sheet


def _annotated(folder: Path, entry: dict[str, Any], coco: dict[str, Any]) -> Image.Image:
    with Image.open(folder / entry["file_name"]) as file:
        zoom = max(1, 256 // max(file.size))
        image = file.convert("RGB").resize((zoom * file.width, zoom * file.height))
    draw = ImageDraw.Draw(image)
    for annotation in coco["annotations"]:
        if annotation["image_id"] == entry["id"]:
            x, y, width, height = (zoom * v for v in annotation["bbox"])
            draw.rectangle([x, y, x + width, y + height], outline=GRID)
            draw.text((x + 2, y - 11), str(annotation["category_id"]), fill=GRID)
    return image
