"""Import what a user wrote: modules that register datasets, heads, batches, probes or measures."""

import importlib
from collections.abc import Sequence


def import_modules(modules: Sequence[str], option: str = "--import") -> None:
    """Import the modules that a user names by an option; every worker must.

    Raises:
        ValueError: a module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            gone = isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name))
            advice = "; PYTHONPATH must name the folder in which it is" if gone else ""
            raise ValueError(f"{option} {module}: {error}{advice}") from error
