"""Cut an image and its boxes into tiles. All boxes are (x0, y0, x1, y1) in pixels."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """A part [x0, x1) x [y0, y1) of an image, in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int


def tile_spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Cut [0, length) into as few spans of at most `tile` as cover it, all of one size.

    Neighbours share exactly `overlap` pixels and sizes differ by one pixel at most, so there is no
    sliver at the far end, nothing is padded, and without overlap no pixel is in two spans.

    Args:
        length, tile: at least 1. overlap: in [0, tile).
    """
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    cuts = [i * (length - overlap) // count for i in range(count + 1)]
    return [(start, end + overlap) for start, end in pairwise(cuts)]


def tile_windows(width: int, height: int, tile: int, overlap: int) -> list[Window]:
    """Return the tiles of a (height, width) image, row by row: `tile_spans` along each axis."""
    return [
        Window(x0, y0, x1, y1)
        for y0, y1 in tile_spans(height, tile, overlap)
        for x0, x1 in tile_spans(width, tile, overlap)
    ]


def clip_boxes(boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to a window.

    Args:
        boxes: (N, 4) in the image's pixels, each of positive area.

    Returns:
        (N, 4) float64 boxes, clipped and in pixels of the window; (N,) shares of each box's area
        inside the window, in [0, 1]. Where the share is 0 the clipped box is meaningless.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    low, high = np.array(window[:2] * 2), np.array(window[2:] * 2)
    clipped = np.clip(boxes, low, high)
    return clipped - low, areas(clipped) / areas(boxes)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the (N,) areas of (N, 4) boxes, in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
