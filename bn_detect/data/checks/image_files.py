"""Faults of image files: missing, unreadable, of another size than the annotations say."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from tqdm import tqdm

# EXIF orientations that turn the picture by 90 degrees; Detectron2 applies them as it reads.
TURNED = (5, 6, 7, 8)


def image_faults(
    images: Sequence[dict[str, Any]], folder: Path, *, decode: bool, label: str
) -> list[str]:
    """Look at every image file, several at a time.

    Args:
        images: entries with "id", "file_name" and, where they are known, "width" and "height".
        folder: that the file names are relative to.
        decode: read all pixels, not only the header: slower, but finds truncated files.
        label: of the progress bar, which shows for many images only.

    Returns:
        one sentence per faulty image.
    """
    threads = min(32, 2 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda image: _fault(image, folder, decode), images)
        progress = tqdm(found, label, len(images), unit="image", disable=len(images) < 1000)
        return [fault for fault in progress if fault is not None]


def _fault(image: dict[str, Any], folder: Path, decode: bool) -> str | None:
    path = folder / image["file_name"]
    label = f"image {image['id']!r} ({path})"
    try:
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
    expected = image.get("width", width), image.get("height", height)
    if (width, height) != expected:
        said = f"the annotations say {expected[0]}x{expected[1]}"
        return f"{label} is {width}x{height} px, {said}"
    return None
