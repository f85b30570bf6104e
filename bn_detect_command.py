"""The console script `bn-detect`; it stands outside the package so that --help need not import it.

Importing bn_detect imports torch and Detectron2, which takes seconds.
"""

import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Run `bn_detect.commands.main`, loaded by its file."""
    package = importlib.util.find_spec("bn_detect")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "commands" / "main.py"
    spec = importlib.util.spec_from_file_location("bn_detect_commands_main", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main()


if __name__ == "__main__":
    sys.exit(main())
