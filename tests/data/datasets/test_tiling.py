"""Tiling and clipping against cases worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest

from bn_detect.data.datasets.neon_trees import TilingOptions, tiles_to_coco
from bn_detect.data.datasets.tiling import Window, clip_boxes, tile_spans, tile_windows


def test_spans_by_hand():
    assert tile_spans(10, 10, 0) == [(0, 10)]
    assert tile_spans(7, 10, 3) == [(0, 7)]
    assert tile_spans(12, 4, 0) == [(0, 4), (4, 8), (8, 12)]
    assert tile_spans(11, 4, 0) == [(0, 3), (3, 7), (7, 11)]  # no sliver at the end
    assert tile_spans(10, 4, 1) == [(0, 4), (3, 7), (6, 10)]
    assert tile_spans(9, 4, 2) == [(0, 3), (1, 5), (3, 7), (5, 9)]


@pytest.mark.parametrize("length", [1, 31, 100, 255, 256, 257, 1035, 2299])
@pytest.mark.parametrize(("tile", "overlap"), [(256, 0), (256, 64), (100, 99), (37, 11)])
def test_spans_cover_evenly(length, tile, overlap):
    spans = tile_spans(length, tile, overlap)
    sizes = [end - start for start, end in spans]
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert max(sizes) <= tile and max(sizes) - min(sizes) <= 1
    shared = {end - start for (_, end), (start, _) in pairwise(spans)}
    assert shared <= {overlap}
    fewer = len(spans) - 1  # tiles of full size, with that overlap, do not reach the end
    assert fewer == 0 or fewer * tile - (fewer - 1) * overlap < length


def test_windows_partition_the_image():
    seen = np.zeros((103, 70), dtype=int)
    for x0, y0, x1, y1 in tile_windows(width=70, height=103, tile=32, overlap=0):
        seen[y0:y1, x0:x1] += 1
    assert (seen == 1).all()


def test_clip_by_hand():
    boxes = np.array([[12, 22, 16, 28], [5, 20, 15, 30], [0, 0, 5, 5], [5, 15, 45, 55]])
    clipped, visible = clip_boxes(boxes, Window(10, 20, 40, 50))
    assert visible.tolist() == [1, 0.5, 0, 900 / 1600]
    assert clipped[[0, 1, 3]].tolist() == [[2, 2, 6, 8], [0, 0, 5, 10], [0, 0, 30, 30]]


# Two tiles of 10x10 px side by side. Tree 0 is inside the left one; tree 1 has 3/4 of its area in
# the left, 1/4 in the right; tree 2 is cut in equal halves; tree 3 is inside the right one.
TILES = [Window(0, 0, 10, 10), Window(10, 0, 20, 10)]
TREES = np.array([[1, 1, 3, 5], [7, 0, 11, 2], [9, 5, 11, 8], [15, 0, 20, 10]])


def rows(coco):
    return [(a["image_id"], a["tree"], a["iscrowd"], a["bbox"]) for a in coco["annotations"]]


def test_coco_by_hand():
    coco = tiles_to_coco("site", TILES, TREES, TilingOptions())
    assert rows(coco) == [
        (1, 0, 0, [1, 1, 2, 4]),
        (1, 1, 0, [7, 0, 3, 2]),
        (1, 2, 1, [9, 5, 1, 3]),
        (2, 1, 1, [0, 0, 1, 2]),
        (2, 2, 1, [0, 5, 1, 3]),
        (2, 3, 0, [5, 0, 5, 10]),
    ]
    assert [a["area"] for a in coco["annotations"]] == [8, 6, 3, 2, 3, 50]
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3, 4, 5, 6]
    names = [(i["id"], i["file_name"], i["width"], i["height"]) for i in coco["images"]]
    assert names == [(1, "site_x0000_y0000.png", 10, 10), (2, "site_x0010_y0000.png", 10, 10)]


def test_min_visible_and_drop():
    dropping = TilingOptions(min_visible=0.8, edge_boxes="drop")
    assert [row[:3] for row in rows(tiles_to_coco("s", TILES, TREES, dropping))] == [
        (1, 0, 0),
        (2, 3, 0),
    ]
    lenient = TilingOptions(min_visible=0.2)
    assert [row[:3] for row in rows(tiles_to_coco("s", TILES, TREES, lenient))] == [
        (1, 0, 0),
        (1, 1, 0),
        (1, 2, 0),
        (2, 1, 0),
        (2, 2, 0),
        (2, 3, 0),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 8}, "tile must be at least 32, got 8"),
        ({"tile": 64, "overlap": 64}, r"overlap must be in \[0, 63\], got 64"),
        ({"min_visible": 1.0}, "min_visible must be in .*, got 1.0"),
        ({"edge_boxes": "keep"}, "edge_boxes must be .*, got 'keep'"),
    ],
)
def test_options_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        TilingOptions(**options)
