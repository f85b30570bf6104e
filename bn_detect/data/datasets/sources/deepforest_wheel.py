"""Read the aerial images with hand-drawn tree boxes that the wheel of `deepforest` holds."""

import io
import zipfile
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from .wheels import Wheel, open_wheel, verify

WHEEL = Wheel(
    "deepforest==2.1.0",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    licence="MIT",
)


@dataclass(frozen=True)
class Source:
    """One annotated image of the wheel.

    Attributes:
        stem: of the image and XML files in the wheel's `deepforest/data/`.
        site: short name of the place, used in the names of tiles.
        png_sha256, xml_sha256: of the two files.
    """

    stem: str
    site: str
    png_sha256: str
    xml_sha256: str


# Two places of the NEON site YELL (Yellowstone), 13 km apart.
SOURCES = {
    "train": Source(
        stem="2019_YELL_2_528000_4978000_image_crop2",
        site="yell_528000_4978000",
        png_sha256="a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
        xml_sha256="bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
    ),
    "val": Source(
        stem="2019_YELL_2_541000_4977000_image_crop",
        site="yell_541000_4977000",
        png_sha256="178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
        xml_sha256="cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
    ),
}


def read_sources(source: str = "") -> dict[str, tuple[Image.Image, np.ndarray]]:
    """Return the images and boxes of `SOURCES` ("train", "val"), checksums verified.

    Args:
        source: the wheel's file. "" downloads it into a temporary folder.

    Returns:
        for each split an RGB image and (N, 4) float64 boxes (x0, y0, x1, y1) in its pixels.

    Raises:
        DatasetError: the wheel is missing, or it or a file in it is not the expected one.
    """
    with open_wheel(WHEEL, source) as archive:
        return {split: _read_source(archive, each) for split, each in SOURCES.items()}


def _read_source(archive: zipfile.ZipFile, source: Source) -> tuple[Image.Image, np.ndarray]:
    png, xml = (f"deepforest/data/{source.stem}.{suffix}" for suffix in ("png", "xml"))
    pixels, annotation = archive.read(png), archive.read(xml)
    verify(pixels, source.png_sha256, f"{png} in the wheel")
    verify(annotation, source.xml_sha256, f"{xml} in the wheel")
    return Image.open(io.BytesIO(pixels)).convert("RGB"), parse_voc_boxes(annotation)


def parse_voc_boxes(xml: bytes) -> np.ndarray:
    """Return (N, 4) float64 boxes (xmin, ymin, xmax, ymax) of a Pascal-VOC annotation.

    They are in the order of the file, and are taken as the edges of the drawn rectangle, counted
    from 0: in these files xmax reaches the width of the image.
    """
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        [float(box.findtext(corner, "")) for corner in corners]
        for box in ElementTree.fromstring(xml).iter("bndbox")
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
