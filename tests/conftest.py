"""One thread for each process of the tests, whatever it starts included.

Tensors are small here, and tests run side by side: threads that wait for each other on cores that
others keep busy made some of these tests a hundred times slower.
"""

import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and inherited by processes

if importlib.util.find_spec("pkg_resources") is None:
    # Detectron2's model zoo, which some tests use, imports it; setuptools 82 dropped it.
    def _resource_filename(package: str, name: str) -> str:
        return str(Path(importlib.util.find_spec(package).origin).parent / name)

    sys.modules["pkg_resources"] = SimpleNamespace(
        resource_filename=_resource_filename,
        fixup_namespace_packages=lambda path: None,  # pytest calls it where the module is there
    )

pytest_plugins = ["tests.helpers.train_net"]


@pytest.fixture(autouse=True)
def _loggers_forget_closed_streams() -> None:
    """Take away the handlers that earlier tests of this process left with pytest's closed streams.

    Each message to one of them would print a traceback into the output that a test looks at.
    """
    known = logging.root.manager.loggerDict.values()
    for logger in (logging.root, *(each for each in known if isinstance(each, logging.Logger))):
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)
