"""One thread for each process of the tests, whatever it starts included.

Tensors are small here, and tests run side by side: threads that wait for each other on cores that
others keep busy made some of these tests a hundred times slower.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

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
