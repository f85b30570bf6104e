"""Faults of image files: missing, unreadable, of another size or kind than they must have."""

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from tqdm import tqdm

from .needs import Needs

# EXIF orientations that turn the picture by 90 degrees; Detectron2 applies them as it reads.
TURNED = (5, 6, 7, 8)
# Modes whose values above 255 Pillow cuts off as Detectron2 reads them: pictures turn white.
MORE_THAN_8_BITS = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def image_faults(
    images: Sequence[dict[str, Any]], folder: Path, needs: Needs, *, decode: bool, label: str
) -> list[str]:
    """Look at every image file, several at a time.

    Args:
        images: entries with "id", "file_name" and, where they are known, "width" and "height".
        folder: the folder to which the file names are relative.
        needs: what the dataset is used for.
        decode: read all pixels, not only the header, which is slower but finds truncated files.
        label: text of the progress bar, which is shown for many images only.

    Returns:
        one sentence for each faulty image.
    """
    threads = min(32, 2 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda image: _fault(image, folder, needs, decode), images)
        progress = tqdm(results, label, len(images), unit="image", disable=len(images) < 1000)
        return [fault for fault in progress if fault is not None]


def _fault(image: dict[str, Any], folder: Path, needs: Needs, decode: bool) -> str | None:
    path = folder / image["file_name"]
    label = f"image {image['id']!r} ({path})"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"{label} cannot be read: it is no regular file"
        with Image.open(path) as picture:
            width, height = picture.size
            if picture.getexif().get(ExifTags.Base.Orientation) in TURNED:
                width, height = height, width
            if decode:
                picture.load()
    except FileNotFoundError:
        return f"{label} is missing"
    except Exception as error:  # noqa: BLE001 - PIL raises nearly anything on damaged files
        return f"{label} cannot be read: {error}"
    if picture.mode in MORE_THAN_8_BITS:
        return (
            f"{label} has more than 8 bits a pixel (mode {picture.mode}), which Detectron2 would "
            "cut off at 255: convert it to 8 bits"
        )
    expected = image.get("width", width), image.get("height", height)
    if (width, height) != expected:
        said = f"the annotations say {expected[0]}x{expected[1]}"
        return f"{label} is {width}x{height} px, {said}"
    fault = needs.resize_fault(width, height)
    return fault and f"{label} {fault}"
