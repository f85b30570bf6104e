"""Find the boxes of blood cells of which only a point is known."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DatasetError

HALF = 2  # the cells are segmented at half size, which is enough and four times faster
SMALLEST_CELL = 60  # pixels at half size; what is smaller is a platelet or dust
SMALLEST_PART = 40  # pixels at half size that a point's own part of a clump must have
WIDEST = 2.2  # median sides; a wider box is a clump whose cells could not be told apart
USUAL_SIDE = 70.0  # pixels, where no cell of an image could be measured


@dataclass(frozen=True)
class Cells:
    """The cells of one photograph, in its pixels.

    Attributes:
        boxes: (N, 4) float64 x0, y0, x1, y1 of the labelled points, in their order.
        centres: (K, 2) x, y of all segmented cells or clumps, labelled or not.
        areas: (K,) pixels of each at half size.
        labelled: (K,) bool, whether a point lies on it.
    """

    boxes: np.ndarray
    centres: np.ndarray
    areas: np.ndarray
    labelled: np.ndarray

    def coverage(self, window: tuple[int, int, int, int], margin: int) -> float:
        """Return the share of the cells' area inside a window that is labelled, in [0, 1].

        Args:
            window: x0, y0, x1, y1.
            margin: cells whose centres are nearer than this to the window's edge do not count.
        """
        low, high = np.array(window[:2]) + margin, np.array(window[2:]) - margin
        inside = ((self.centres >= low) & (self.centres < high)).all(1)
        inside &= self.areas > SMALLEST_CELL
        return float(self.areas[inside & self.labelled].sum() / max(1, self.areas[inside].sum()))


def find_cells(pixels: np.ndarray, points: np.ndarray) -> Cells:
    """Segment a photograph, and give each point the box of its cell.

    Cells are darker than the background in green: Otsu's threshold, opened, holes filled. Each
    pixel of a segment belongs to the nearest of the points on the segment, which divides clumps. A
    point beside all cells, or with too small or too wide a box, gets a square of the median side.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        points: (N, 2) x, y.

    Raises:
        DatasetError: scikit-image is not installed.
    """
    filters, measure, morphology, ndimage = _libraries()
    height, width = (side // HALF for side in pixels.shape[:2])
    green = pixels[: height * HALF, : width * HALF, 1].astype(np.float64)
    green = green.reshape(height, HALF, width, HALF).mean((1, 3))
    cells = green < filters.threshold_otsu(green)
    cells = ndimage.binary_fill_holes(morphology.opening(cells, morphology.disk(1)))
    segments = measure.label(cells)
    regions = measure.regionprops(segments)
    column, row = np.clip(points / HALF, 0, [width - 1, height - 1]).astype(int).T
    owner = segments[row, column]
    boxes = np.full((len(points), 4), np.nan)
    for label in set(owner.tolist()) - {0}:
        y, x = regions[label - 1].coords.T
        own = np.flatnonzero(owner == label)
        distance = np.hypot(x[:, None] - points[own, 0] / HALF, y[:, None] - points[own, 1] / HALF)
        nearest = distance.argmin(1)
        for index, point in enumerate(own):
            part = nearest == index
            if part.sum() > SMALLEST_PART:
                boxes[point] = x[part].min(), y[part].min(), x[part].max() + 1, y[part].max() + 1
    return Cells(
        boxes=_completed(HALF * boxes, points),
        centres=np.array([r.centroid[::-1] for r in regions]).reshape(-1, 2) * HALF,
        areas=np.array([r.area for r in regions]),
        labelled=np.isin(np.arange(1, len(regions) + 1), owner),
    )


def _completed(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Give a square of the median side to the points whose boxes are missing or too wide."""
    sides = boxes[:, 2:] - boxes[:, :2]
    found = np.isfinite(sides).all(1)
    side = float(np.median(np.sqrt(sides[found].prod(1)))) if found.any() else USUAL_SIDE
    wrong = ~found | (np.nan_to_num(sides).max(1) > WIDEST * side)
    squares = np.concatenate([points - side / 2, points + side / 2], axis=1)
    return np.where(wrong[:, None], squares, boxes)


def _libraries() -> tuple[Any, Any, Any, Any]:
    try:
        from scipy import ndimage
        from skimage import filters, measure, morphology
    except ImportError as error:
        raise DatasetError(
            "blood_cells needs scikit-image: pip install 'scikit-image>=0.21'"
        ) from error
    return filters, measure, morphology, ndimage
