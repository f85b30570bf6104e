"""The versions of everything that a run was made with."""

import contextlib
import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import detectron2
import torch

PACKAGES = ("bn_detect", "torch", "torchvision", "numpy", "scikit-learn")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and packages, the processor or GPU, and the state of the code in git."""
    found = {"python": platform.python_version(), "detectron2": detectron2.__version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()}
    else:
        found["processor"] = platform.machine()
    return found | _git()


def _git() -> dict[str, str]:
    """The commit of the package, and its files changed since; {} where it is in no repository."""
    folder = Path(__file__).parents[1]
    try:
        commit, changed = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
            ).stdout.rstrip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    files = ", ".join(line[3:] for line in changed.splitlines())
    return {"git commit": commit, "changed since": files or "nothing"}
