"""Pictures of a prepared dataset, in which a person can check its boxes."""

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
