"""Read config files without executing code that they hold."""

from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import CfgNode


class SafeConfig(CfgNode):
    """A config that merges plain YAML only.

    Detectron2 evaluates YAML's Python tags, which may be any code. Here only the files of the
    installed Detectron2 may have them, such as its Base-RetinaNet.yaml.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Read a file and its bases, as the parent does; called again for each `_BASE_`.

        Raises:
            yaml.YAMLError: another file has a Python tag, or is no YAML.
        """
        installed = Path(detectron2.__file__).resolve().parent
        trusted = Path(filename).resolve().is_relative_to(installed)
        content: dict[str, Any] = super().load_yaml_with_base(filename, allow_unsafe=trusted)
        return content
