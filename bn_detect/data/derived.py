"""Datasets that become known when their name is asked for.

NAME@N is N images of NAME, NAME@-N all but N of them. NAME_corrupted_TYPE_SEVERITY has NAME's
images, corrupted as they are read. NAME_train and NAME_val may be the splits of a dataset that an
earlier process prepared.
"""

import re
from collections.abc import Sequence

from detectron2.data import DatasetCatalog

from .corrupted import register_corrupted
from .datasets.registry import register_prepared
from .subset import register_subset

CORRUPTED = re.compile(r"(.+)_corrupted_([a-z0-9_]+)_(\d+)")
SUBSET = re.compile(r"(.+)@(.*)")


def register_derived(names: Sequence[str]) -> None:
    """Register each name of these forms, also combined, such as NAME_corrupted_fog_3@100.

    Other names and those already registered are left alone.

    Raises:
        ValueError: an unknown corruption or severity, a corruption of a corrupted dataset, a number
            of images that is no positive integer, or a faulty record of a prepared dataset.
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
        else:
            register_prepared(name)
