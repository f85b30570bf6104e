"""Silence what the libraries below say on their own use of one another: no user can act on it."""

import logging
import sys
import warnings

LIBRARIES = r"(detectron2|fvcore|torch|torchvision)\b"
_LOGGERS = ("torch.fx._symbolic_trace", "torch.utils.cpp_extension")


def silence_foreign_warnings() -> None:
    """Silence the libraries' warnings in this process, unless `python -W` or PYTHONWARNINGS is set.

    Warnings of this package, of a user's modules, and of the libraries on what they are given stay.
    A log that cannot be written loses its lines, in any case: that a disk is full is told once.
    """
    logging.raiseExceptions = False
    if sys.warnoptions:
        return
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=LIBRARIES)
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
