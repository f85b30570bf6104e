"""Faults of segmentations: polygons and run-length encodings (RLE)."""

from collections.abc import Iterator, Sequence
from typing import Any

from .needs import Needs
from .numbers import is_integer, is_number

SHORTEST = 6  # numbers of a polygon with three corners
LARGEST_SIDE = 2**15  # px, of an image whose size is not known


def mask_faults(
    annotation: dict[str, Any], image: dict[str, Any], needs: Needs, *, short_polygons: bool = False
) -> Iterator[str]:
    """Say what is wrong with the segmentation of an annotation.

    Detectron2 reads segmentations also where masks are not trained: one of a wrong form stops it or
    loses the object, so the form is always checked. The numbers are checked where masks are used.

    Args:
        image: "width" and "height", where they are known.
        short_polygons: whether polygons of fewer than three corners are tolerated beside others.

    Returns:
        phrases that follow the name of the annotation.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation and segmentation != 0:
        if needs.mask_format and needs.of(annotation):
            what = "is empty" if "segmentation" in annotation else "is missing"
            yield f"'segmentation' {what}, which MODEL.MASK_ON needs"
    elif isinstance(segmentation, list):
        side = max(image.get("width", LARGEST_SIDE), image.get("height", LARGEST_SIDE))
        strict = needs.mask_format is not None
        yield from _polygon_faults(segmentation, side, strict, short_polygons)
    elif isinstance(segmentation, dict):
        yield from _rle_faults(segmentation, image, needs)
        trained = needs.trained and annotation.get("iscrowd", 0) == 0
        if trained and needs.mask_format == "polygon":
            yield "'segmentation' is an RLE; set INPUT.MASK_FORMAT to 'bitmask'"
    else:
        yield f"'segmentation' must be a list of polygons or an RLE, got {segmentation!r:.60}"


def _polygon_faults(
    polygons: list[Any], side: int, strict: bool, short_polygons: bool
) -> Iterator[str]:
    if all(is_number(item) for item in polygons):
        yield "'segmentation' is a flat list; it must be a list of polygons, [[x, y, ...], ...]"
        return
    for polygon in polygons:
        if not isinstance(polygon, list):
            yield f"'segmentation' has {polygon!r:.60} in place of a polygon [x, y, ...]"
            return
    lengths = [len(p) for p in polygons if len(p) % 2 or len(p) < SHORTEST]
    if len(lengths) == len(polygons) or (strict and lengths and not short_polygons):
        yield (
            f"'segmentation' has a polygon of {lengths[0]} numbers; it must be an even number, "
            f"at least {SHORTEST}"
        )
    values = [value for polygon in polygons for value in polygon] if strict else []
    for value in values:
        if not is_number(value):
            yield f"'segmentation' has a coordinate {value!r:.60}, which is no finite number"
            return
        if not -side <= value <= 2 * side:  # drawing it would take memory for each pixel of it
            yield f"'segmentation' has a coordinate {value!r:.60}, far outside its image"
            return


def _rle_faults(rle: dict[str, Any], image: dict[str, Any], needs: Needs) -> Iterator[str]:
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(map(is_integer, size))):
        yield f"'segmentation' is an RLE of size {size!r:.60}, must be [height, width]"
        return
    expected = [image.get("height", size[0]), image.get("width", size[1])]
    if list(size) != expected:
        yield f"'segmentation' is an RLE of size {list(size)}, but its image has {expected}"
    elif isinstance(counts, str | bytes):
        if needs.mask_format is not None:
            yield from _count_faults(decoded_counts(counts), size)
    elif isinstance(counts, list) and all(is_integer(count) for count in counts):
        yield from _count_faults(counts, size)
    else:
        yield f"'segmentation' is an RLE with counts {counts!r:.60}, must be a text or integers"


def _count_faults(counts: list[int] | None, size: Sequence[int]) -> Iterator[str]:
    if counts is None or min(counts, default=-1) < 0 or sum(counts) != size[0] * size[1]:
        yield f"'segmentation' is an RLE whose counts do not give the {size[0] * size[1]} pixels"
    elif sum(counts[1::2]) == 0:
        yield "'segmentation' is an RLE that covers no pixel"


def decoded_counts(text: str | bytes) -> list[int] | None:
    """Return the run lengths of COCO's compressed RLE, or None if the text is none.

    Each number is written in groups of 5 bits from the lowest, one character each, with a bit that
    says whether more follow. From the fourth on, it is the difference to the last but one.
    """
    codes = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    counts: list[int] = []
    value, shift = 0, 0
    for code in codes:
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return None if shift else counts
