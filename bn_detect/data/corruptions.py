"""Corruptions of images: the 15 common ones, and those that a project adds to `CORRUPTIONS`.

The library `imagecorruptions-imaug`, an extra of this package, computes the common ones (Hendrycks
& Dietterich 2019; Michaelis et al. 2019). It draws from NumPy's global generator, which each call
seeds and puts back as it was.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import numpy as np
from PIL import Image

_COMMON = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # px: the library's own rule
_OWN_SEED = ("glass_blur", "impulse_noise")  # which do not use NumPy's global generator
_INSTALL = "pip install 'bn_detect[corruptions]'"
_LOCK = threading.Lock()  # one thread at a time has the generator


# What each makes of an image (H, W, 3) uint8 RGB, a severity 1 to 5 and a seed; its image is alike.
Corruption = Callable[[np.ndarray, int, int], np.ndarray]


def corrupt(image: np.ndarray, corruption: str, severity: int, *, seed: int) -> np.ndarray:
    """Return a corrupted copy of an image, which depends on the arguments alone.

    Args:
        image: (H, W, 3) uint8, RGB; at least 32 pixels high and wide.
        corruption: a key of `CORRUPTIONS`. The first "glass_blur" of a process takes seconds, in
            which it is compiled.
        severity: 1 to 5.
        seed: seed of the random part of the corruption, in [0, 2**32).

    Returns:
        an image of the same shape and type.

    Raises:
        ValueError: an unknown corruption or severity, an image of another form, or the library is
            not installed.
    """
    check_corruption(corruption, severity)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an (H, W, 3) uint8 image; got {image.shape} {image.dtype}")
    if min(image.shape[:2]) < SMALLEST:
        raise ValueError(
            f"the image is {image.shape[1]}x{image.shape[0]} px; corruptions need at least "
            f"{SMALLEST} px each way"
        )
    return CORRUPTIONS[corruption](image, severity, seed)


def check_corruption(corruption: str, severity: int) -> None:
    """Raise ValueError for an unknown corruption or severity, or if the library is missing."""
    if corruption not in CORRUPTIONS:
        raise ValueError(
            f"corruption is {corruption!r}; it must be one of {', '.join(CORRUPTIONS)}"
        )
    if severity not in SEVERITIES:
        raise ValueError(f"severity of {corruption} is {severity!r}; it must be 1 to 5")
    if corruption in _COMMON:
        _library()


def _common(name: str, image: np.ndarray, severity: int, seed: int) -> np.ndarray:
    own = {"seed": seed} if name in _OWN_SEED else {}
    with _seeded(seed):
        corrupted = getattr(_library(), name)(Image.fromarray(image), severity, **own)
    return np.asarray(corrupted).astype(np.uint8)


def _library() -> ModuleType:
    """Return the library's module of functions.

    Raises:
        ValueError: it is not installed, or its predecessor of the same module name is.
    """
    try:
        from imagecorruptions import corruptions as library
    except ImportError as error:
        need = "corrupted images need the library imagecorruptions-imaug"
        raise ValueError(f"{need}: {_INSTALL}") from error
    if not hasattr(library, "njit"):
        raise ValueError(
            "the library imagecorruptions, of 2020, does not work with current NumPy: "
            f"pip uninstall imagecorruptions, then {_INSTALL}"
        )
    return library


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator within the context."""
    with _LOCK:
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


CORRUPTIONS: dict[str, Corruption] = {name: partial(_common, name) for name in _COMMON}
