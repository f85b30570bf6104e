"""Datasets that a study makes where they are missing."""

from .. import data
from .plan import Study


def prepare_datasets(study: Study) -> None:
    """Make the study's datasets under $DETECTRON2_DATASETS, unless they are there.

    Raises:
        ValueError: one is there with other options, or cannot be made.
    """
    for name, options in study.datasets.items():
        made = data.prepare_dataset(name, options)
        print(f"dataset {name}: {'prepared' if made else 'already prepared'}", flush=True)


def check_dataset_options(study: Study) -> None:
    """Raise ValueError for a dataset that cannot be made; names the study's file, key and value."""
    for name, options in study.datasets.items():
        try:
            data.check_dataset_options(name, options)
        except ValueError as error:
            raise ValueError(f"{study.file}: datasets: {error}") from error
