"""Spoilt annotations: refused in one line before training begins."""

import json
import math

import pytest
from pycocotools import mask as mask_util

from bn_detect.data import check_datasets

from .spoilt import CLOSED, POINTS, refusal, register_small, spoil, uses

RLE = {"size": [30, 40], "counts": [100, 50, 1050]}
SEGMENTATIONS = {
    "missing": ...,
    "null": None,
    "empty": [],
    "flat": CLOSED[0],
    "text": "polygon",
    "a number": 7,
    "polygons of text": ["abcdefgh"],
    "of two corners": [*CLOSED, [1, 1, 2, 2]],
    "of an odd length": [[1, 1, 9, 1, 9, 9, 1]],
    "NaN": [[math.nan, 1, 9, 1, 9, 9]],
    "infinite": [[math.inf, 1, 9, 1, 9, 9]],
    "of 400 digits": [[10**400, 1, 9, 1, 9, 9]],
    "far outside its image": [[10**12, 1, 9, 1, 9, 9]],
    "of letters": [["a", 1, 9, 1, 9, 9]],
    "an RLE of another size": {**RLE, "size": [40, 30]},
    "an RLE without a size": {"counts": RLE["counts"]},
    "an RLE of text as size": {**RLE, "size": "30x40"},
    "an RLE without counts": {"size": [30, 40]},
    "an RLE of too few pixels": {**RLE, "counts": [100, 50]},
    "an RLE of negative counts": {**RLE, "counts": [1300, -100]},
    "an RLE of fractions": {**RLE, "counts": [0.5, 1199.5]},
    "an RLE of garbage": {**RLE, "counts": "?!garbage"},
    "an RLE that is cut off": {**RLE, "counts": "T3b1~"},
    "an RLE under MASK_FORMAT polygon": RLE,
}


@pytest.mark.parametrize("kind", SEGMENTATIONS)
@pytest.mark.fault("a segmentation is {kind}", should="refused in one line with its annotation")
def test_segmentations(kind, tmp_path, happened):
    name, coco = register_small(tmp_path)
    spoil(coco["annotations"][1], "segmentation", SEGMENTATIONS[kind])
    happened(
        refusal(tmp_path, name, coco, "annotation 2 of image 10", "segmentation", MASK_ON=True)
    )


KEYPOINTS = {
    "missing": ("keypoints", ...),
    "empty": ("keypoints", []),
    "one too few": ("keypoints", POINTS[:6]),
    "one coordinate too few": ("keypoints", POINTS[:8]),
    "text": ("keypoints", "nose"),
    "a list of texts": ("keypoints", ["5"] * 9),
    "NaN": ("keypoints", [math.nan, *POINTS[1:]]),
    "of visibility 3": ("keypoints", [5, 5, 3, *POINTS[3:]]),
    "miscounted": ("num_keypoints", 0),
    "not counted": ("num_keypoints", ...),
}


@pytest.mark.parametrize("kind", KEYPOINTS)
@pytest.mark.fault("keypoints are {kind}", should="refused in one line with their annotation")
def test_keypoints(kind, tmp_path, happened):
    name, coco = register_small(tmp_path)
    spoil(coco["annotations"][1], *KEYPOINTS[kind])
    parts = ("annotation 2 of image 10", "keypoints")
    happened(refusal(tmp_path, name, coco, *parts, KEYPOINT_ON=True))


EVALUATION = {
    "an annotation id that is text": ("id", "two"),
    "an annotation id of 400 digits": ("id", 10**400),
    "an area that is null": ("area", None),
    "an area that is missing": ("area", ...),
    "an area of 400 digits": ("area", 10**400),
    "an area that is NaN": ("area", math.nan),
    "an iscrowd that is missing": ("iscrowd", ...),
    "'ignore' set": ("ignore", 1),
    "a box of 400 digits": ("bbox", [10**400, 1, 2, 2]),
}


@pytest.mark.parametrize("kind", EVALUATION)
@pytest.mark.fault(
    "an annotation has {kind}, which only loading or evaluation would notice",
    should="refused in one line before training",
)
def test_annotations_that_cannot_be_evaluated(kind, tmp_path, happened):
    name, coco = register_small(tmp_path)
    spoil(coco["annotations"][1], *EVALUATION[kind])
    happened(refusal(tmp_path, name, coco, "annotation"))


def test_what_is_right_is_not_refused(tmp_path):
    """The dataset that the tests above spoil, and faults that do not matter to a use."""
    name, coco = register_small(tmp_path)
    compressed = {"size": [30, 40], "counts": mask_util.frPyObjects(RLE, 30, 40)["counts"].decode()}
    coco["annotations"][2]["segmentation"] = compressed
    (tmp_path / "a.json").write_text(json.dumps(coco))
    for keys in ({}, {"MASK_ON": True}, {"KEYPOINT_ON": True}):
        cfg = uses(name, **keys)
        cfg.INPUT.MASK_FORMAT = "bitmask"
        check_datasets([name], cfg)
    coco["annotations"][1].update(segmentation=[[math.nan, 1, 9, 1, 9, 9]], keypoints=None)
    (tmp_path / "a.json").write_text(json.dumps(coco))
    check_datasets([name], uses(name))
