"""The 15 common corruptions of images (Hendrycks & Dietterich 2019; Michaelis et al. 2019).

The functions come from the library `imagecorruptions`, which was written for older versions of
NumPy and scikit-image. Each call runs its code in a new namespace, in which `import` returns what
the library expects. Nothing outside that namespace changes, so any thread may call it at any time.
The namespace supplies:

- `numpy` with `float_`, which NumPy 2 removed, and with a `random` that is seeded for this call;
- `skimage.filters.gaussian` with `multichannel`, which is now called `channel_axis`;
- `skimage.util.random_noise` with a seed, because scikit-image uses a generator of its own;
- `scipy.ndimage.interpolation`, deprecated, and `pkg_resources`, which new setuptools lack.
"""

import builtins
import functools
import importlib
import importlib.util
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

CORRUPTIONS = (
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


def corrupt(image: np.ndarray, corruption: str, severity: int, *, seed: int) -> np.ndarray:
    """Return a corrupted copy of an image, which depends on the arguments alone.

    Args:
        image: (H, W, 3) uint8, RGB; at least 32 pixels high and wide.
        corruption: one of `CORRUPTIONS`. "glass_blur" takes seconds for an image, others far less.
        severity: 1 to 5.
        seed: seed of the random part of the corruption, at least 0. NumPy's global generator is not
            used.

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
    function = _library(seed)[corruption]
    return np.asarray(function(Image.fromarray(image), severity)).astype(np.uint8)


def check_corruption(corruption: str, severity: int) -> None:
    """Raise ValueError for an unknown corruption or severity, or if the library is missing."""
    if corruption not in CORRUPTIONS:
        raise ValueError(
            f"corruption is {corruption!r}; it must be one of {', '.join(CORRUPTIONS)}"
        )
    if severity not in SEVERITIES:
        raise ValueError(f"severity of {corruption} is {severity!r}; it must be 1 to 5")
    _library_code()


def _library(seed: int) -> dict[str, Any]:
    """Return the library's functions by name, with their random numbers seeded."""
    namespace: dict[str, Any] = {"__name__": "imagecorruptions.corruptions"}
    namespace["__builtins__"] = {**vars(builtins), "__import__": _importer(seed)}
    exec(_library_code(), namespace)
    return namespace


@functools.cache
def _library_code() -> CodeType:
    path = _library_folder() / "corruptions.py"
    return compile(path.read_text(), str(path), "exec")


def _library_folder() -> Path:
    spec = importlib.util.find_spec("imagecorruptions")  # find_spec does not run the library
    if spec is None or spec.origin is None:
        raise ValueError(
            "corrupted images need the library imagecorruptions: "
            "pip install 'bn_detect[corruptions]'"
        )
    return Path(spec.origin).parent


def _importer(seed: int):
    """Return the function that `import` calls in the library's code."""
    import skimage.color
    import skimage.filters
    import skimage.util

    def gaussian(image, *args, multichannel: bool = False, **kwargs):
        axis = -1 if multichannel else None
        return skimage.filters.gaussian(image, *args, channel_axis=axis, **kwargs)

    random_noise = functools.partial(skimage.util.random_noise, rng=np.random.default_rng(seed))
    supplied = {
        "numpy": _Numpy(float_=np.float64, random=np.random.RandomState(seed)),
        "skimage": SimpleNamespace(
            color=skimage.color, util=SimpleNamespace(random_noise=random_noise)
        ),
        "skimage.filters": SimpleNamespace(gaussian=gaussian),
        "scipy.ndimage.interpolation": importlib.import_module("scipy.ndimage"),
        "pkg_resources": SimpleNamespace(
            resource_filename=lambda _, name: str(_library_folder() / name)
        ),
    }

    def import_(name: str, *args):
        return supplied[name] if name in supplied else builtins.__import__(name, *args)

    return import_


class _Numpy(SimpleNamespace):
    """Stand in for the module numpy, with some names replaced."""

    def __getattr__(self, name: str):
        return getattr(np, name)
