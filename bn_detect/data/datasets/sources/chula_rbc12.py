"""Read the files of Chula RBC-12, photographs of blood smears with a point for each cell.

The files are those of one commit of the public repository. Each file that is read is compared with
the manifest `chula_rbc12.sha256`, which is in the format of the program sha256sum.
"""

import contextlib
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from .wheels import verify

REPOSITORY = "https://github.com/Chula-PIC-Lab/Chula-RBC-12-Dataset"
COMMIT = "fa130f48135d"
ARCHIVE = f"{REPOSITORY}/archive/{COMMIT}.zip"
SOURCE = {
    "archive": ARCHIVE,
    "commit": COMMIT,
    "licence": "MIT",
    "citation": "Korranat Naruenatthanaset, Thanarat H. Chalidabhongse, Duangdao Palasuwan, "
    "Nantheera Anantrasirichai, Attakorn Palasuwan: Red Blood Cell Segmentation with Overlapping "
    "Cell Separation and Classification on Imbalanced Dataset. arXiv:2012.01321, 2021.",
}
# The classes by the numbers in the label files.
CELLS = (
    "normal",
    "macrocyte",
    "microcyte",
    "spherocyte",
    "target",
    "stomatocyte",
    "ovalocyte",
    "teardrop",
    "burr",
    "schistocyte",
    "uncategorised",
    "hypochromia",
    "elliptocyte",
)
SECONDS = 60  # without an answer of the server
LARGEST = 10**7  # bytes of a file in the archive

Read = Callable[[str], bytes]


def manifest() -> dict[str, str]:
    """Return the sha256 of each file by its path in the repository."""
    lines = Path(__file__).with_name("chula_rbc12.sha256").read_text().splitlines()
    return {path: sha256 for sha256, path in (line.split(maxsplit=1) for line in lines)}


@contextlib.contextmanager
def opened(source: str = "") -> Iterator[tuple[list[int], Read]]:
    """Give the numbers of the photographs and a function that reads a file, checksum verified.

    Args:
        source: a folder or zip file with the repository's files. "" downloads the archive.

    Raises:
        DatasetError: the source is missing, cannot be downloaded, or has other files.
    """
    sums = manifest()
    with contextlib.ExitStack() as stack:
        place = Path(source) if source else _downloaded(stack)
        if place.is_dir():
            read = _folder_reader(place)
        elif place.is_file():
            read = _zip_reader(place, stack, next(iter(sums)))
        else:
            raise DatasetError(f"--from {place}: no such folder or zip file")

        def verified(path: str) -> bytes:
            content = read(path)
            verify(content, sums[path], f"{place}: {path}")
            return content

        numbers = sorted(int(Path(path).stem) for path in sums if path.startswith("Label/"))
        yield numbers, verified


def parse_points(content: bytes, path: str) -> np.ndarray:
    """Return (N, 3) float64: x, y in pixels and the class of each labelled cell.

    Raises:
        DatasetError: a line is not three numbers, or the class is unknown.
    """
    try:
        rows = [line.replace(",", " ").split() for line in content.decode().splitlines()]
        points = np.array([row for row in rows if row], dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise DatasetError(f"{path}: each line must be x, y and a class: {error}") from error
    if not set(points[:, 2]) <= set(range(len(CELLS))):
        raise DatasetError(f"{path}: classes must be 0 to {len(CELLS) - 1}")
    return points


def _folder_reader(folder: Path) -> Read:
    def read(path: str) -> bytes:
        try:
            return (folder / path).read_bytes()
        except OSError as error:
            raise DatasetError(f"{folder / path} cannot be read: {error.strerror}") from error

    return read


def _zip_reader(path: Path, stack: contextlib.ExitStack, first: str) -> Read:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} cannot be read as a zip file: {error}") from error
    prefixes = [n.removesuffix(first) for n in archive.namelist() if n.endswith(first)]
    if not prefixes:
        raise DatasetError(f"{path} does not hold {first}; expected the files of {REPOSITORY}")

    def read(name: str) -> bytes:
        try:
            info = archive.getinfo(prefixes[0] + name)
            if info.file_size > LARGEST:
                raise DatasetError(f"{path}: {name} has {info.file_size} bytes, above {LARGEST}")
            return archive.read(info)
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{path}: {name} cannot be read: {error}") from error

    return read


def _downloaded(stack: contextlib.ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bn_detect-archive-"))
    path = Path(folder, "archive.zip")
    try:
        with urllib.request.urlopen(ARCHIVE, timeout=SECONDS) as response, open(path, "wb") as file:
            shutil.copyfileobj(response, file)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DatasetError(
            f"cannot download {ARCHIVE}: {error}; download it elsewhere and pass --from PATH"
        ) from error
    return path
