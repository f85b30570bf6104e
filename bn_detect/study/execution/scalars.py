"""Write what a run measured for TensorBoard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


def write_scalars(measurements: dict[str, Any], folder: Path) -> None:
    """Write every single number of a measurements.json to an event file in `folder`."""
    with SummaryWriter(str(folder)) as writer:
        for measure, result in measurements["measures"].items():
            for name, value in scalars(result, measure):
                writer.add_scalar(name, value, measurements["iterations"])


def scalars(tree: Any, name: str) -> Iterator[tuple[str, float]]:
    """The numbers in nested mappings, with names such as "evaluation/population/val/bbox/AP".

    Of lists, only those whose items are named: BN layers with a label, rows of the decomposition.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from scalars(value, f"{name}/{key}")
    elif isinstance(tree, list | tuple):
        for item in tree:
            names = [item[key] for key in _NAMING if key in item] if isinstance(item, dict) else []
            if len(names) == 2:
                rest = {key: value for key, value in item.items() if key not in _NAMING}
                yield from scalars(rest, "/".join([name, *names]))
    elif isinstance(tree, int | float):
        yield name, float(tree)


_NAMING = ("name", "split", "statistics", "label")
