"""Datasets that are made from registered ones, by their names.

NAME@N: N images of NAME. NAME_corrupted_TYPE_SEVERITY: its images, corrupted as they are read.
"""

import re
from collections.abc import Sequence

from detectron2.data import DatasetCatalog

from .corrupted import register_corrupted
from .subset import register_subset

CORRUPTED = re.compile(r"(.+)_corrupted_([a-z_]+)_(\d+)")
SUBSET = re.compile(r"(.+)@(.*)")


def register_derived(names: Sequence[str]) -> None:
    """Register every name of these forms, and of both, such as NAME_corrupted_fog_3@100.

    Other names and those already registered are left alone.

    Raises:
        ValueError: an unknown corruption or severity, a corruption of a corrupted dataset, or a
            number of images that is none.
    """
    for name in names:
        if name in DatasetCatalog:
            continue
        if match := CORRUPTED.fullmatch(name):
            whole, corruption, severity = match.groups()
            if CORRUPTED.fullmatch(whole):
                raise ValueError(f"dataset {name!r}: {whole!r} is corrupted already")
            register_derived([whole])
            register_corrupted(whole, corruption, int(severity))
        elif match := SUBSET.fullmatch(name):
            whole, number = match.groups()
            register_derived([whole])
            register_subset(whole, number)
