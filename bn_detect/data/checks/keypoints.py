"""Faults of keypoints."""

from collections.abc import Iterator
from typing import Any

from .needs import Needs
from .numbers import is_number

COCO_KEYPOINTS = 17  # for which the evaluation has its own sigmas


def keypoint_faults(annotation: dict[str, Any], needs: Needs) -> Iterator[str]:
    """Say what is wrong with the keypoints of an annotation.

    Detectron2 reads keypoints also where they are not trained, so their form is always checked.

    Returns:
        phrases that follow the name of the annotation.
    """
    keypoints = annotation.get("keypoints")
    used = needs.keypoints > 0 and needs.of(annotation)
    if not keypoints and keypoints != 0:
        if used:
            what = "is empty" if "keypoints" in annotation else "is missing"
            yield f"'keypoints' {what}, which MODEL.KEYPOINT_ON needs"
        return
    if not (isinstance(keypoints, list) and all(map(is_number, keypoints))):
        yield f"'keypoints' must be a list of finite numbers, got {keypoints!r:.60}"
        return
    if not used:
        return
    if len(keypoints) != 3 * needs.keypoints:
        yield (
            f"'keypoints' has {len(keypoints)} numbers, but MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS "
            f"{needs.keypoints} needs {3 * needs.keypoints}: x, y and visibility of each"
        )
        return
    visibility = keypoints[2::3]
    wrong = [v for v in visibility if v not in (0, 1, 2)]
    if wrong:
        yield f"'keypoints' has the visibility {wrong[0]}, must be 0, 1 or 2"
    labelled = sum(v > 0 for v in visibility)
    if needs.evaluated and annotation.get("num_keypoints") != labelled:
        number = annotation.get("num_keypoints", "missing")
        yield f"'num_keypoints' is {number!r:.60}, but {labelled} of its keypoints are labelled"


def keypoint_metadata_faults(metadata: Any, needs: Needs) -> Iterator[str]:
    """Say what training and evaluating keypoints needs beside the annotations."""
    if not needs.keypoints:
        return
    if needs.trained:
        names = metadata.get("keypoint_names")
        if names is None or metadata.get("keypoint_flip_map") is None:
            yield (
                "its metadata has no keypoint_names and keypoint_flip_map, which MODEL.KEYPOINT_ON "
                "needs: set them in Detectron2's MetadataCatalog where it is registered"
            )
        elif len(names) != needs.keypoints:
            yield (
                f"its metadata has {len(names)} keypoint_names, but "
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {needs.keypoints}"
            )
    if needs.evaluated and (needs.sigmas or COCO_KEYPOINTS) != needs.keypoints:
        yield (
            f"TEST.KEYPOINT_OKS_SIGMAS has {needs.sigmas} values, but evaluation needs one for "
            f"each of the {needs.keypoints} keypoints"
        )
