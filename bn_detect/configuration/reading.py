"""Read a config from a YAML file and KEY VALUE pairs; name the key and the remedy in each error."""

import argparse
import difflib
import re
from pathlib import Path
from typing import Any

import detectron2
import yaml
from detectron2.config import CfgNode

from .files import find
from .keys import default_config
from .lazy_config import SUFFIX, merge_lazy_config
from .values import check_keys, check_values, flat_keys, value_of


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


def read_config(args: argparse.Namespace) -> CfgNode:
    """Return the frozen config of `--config-file` and the KEY VALUE pairs.

    Args:
        args: `config_file`, "" for none, and `opts`, the list of keys and values. A file that ends
            in .py is a LazyConfig, which is executed; see `merge_lazy_config`. With `made_here`,
            the file is one that a run wrote for itself, which may name a LazyConfig.

    Raises:
        ValueError: the file is missing, a key is unknown (names the nearest known one), or a value
            is of the wrong type.
    """
    cfg = SafeConfig(default_config())  # all its nodes must be of the type of those read
    words = args.opts
    if str(args.config_file).endswith(SUFFIX):
        words = merge_lazy_config(cfg, args.config_file, words)
    elif args.config_file:
        _merge_file(cfg, args.config_file)
    _merge_pairs(cfg, words)
    file = cfg.MODEL.LAZY_CONFIG.FILE
    executed = str(args.config_file).endswith(SUFFIX) or getattr(args, "made_here", False)
    if file and not executed:
        raise ValueError(
            f"MODEL.LAZY_CONFIG.FILE is {file!r}, but neither a YAML file nor a key can have code "
            "executed; use --config-file with the .py file itself"
        )
    check_values(cfg)
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, file: str) -> None:
    try:
        path = file if "://" in file else str(find(file))
        cfg.merge_from_file(path, allow_unsafe=False)
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        in_braces = "flow mapping" in text
        hint = f"; {_IN_BRACES.format(example='KEY: [1, 2]')}" if in_braces else ""
        raise ValueError(f"--config-file {file}: {text}{hint}") from error
    except OSError as error:
        raise ValueError(f"--config-file {file}: {error}".replace("\n", " ")) from error
    except (KeyError, AssertionError) as error:
        raise ValueError(f"{error.args[0]}{_nearest_key(cfg, str(error.args[0]))}") from error
    except ValueError as error:
        raise ValueError(f"--config-file {file}: {_no_list(error) or _shortened(error)}") from error
    except (AttributeError, RecursionError, TypeError) as error:
        message = f"--config-file {file} is no mapping of keys to values: {error}"
        raise ValueError(message) from error


_IN_BRACES = "within braces, YAML takes (1, 2) for text; write {example}"
_NO_LIST = re.compile(
    r"Type mismatch \(<class '(?:tuple|list)'> vs\. .*? with values \(.* vs\. (.*)\) for config "
    r"key: (\S+)"
)


def _no_list(error: ValueError) -> str:
    """Return what to say of a value where a list must be; "" of other errors."""
    found = _NO_LIST.search(" ".join(str(error).split()))
    if found is None:
        return ""
    value, key = found.groups()
    hint = _IN_BRACES.format(example=f"{key.rpartition('.')[2]}: {_as_list(value)}")
    more = f"; {hint}" if value.startswith("(") else ""
    return f'{key} is {value:.100}; it must be a list, as "{_as_list(value)}"{more}'


def _merge_pairs(cfg: CfgNode, words: list[Any]) -> None:
    check_keys(words)
    if len(words) % 2:
        raise ValueError(f"KEY VALUE pairs: {words[-1]!r} is left over; there must be pairs")
    for key, value in zip(words[::2], words[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, AssertionError) as error:
            raise ValueError(f"{error.args[0]}{_nearest_key(cfg, str(error.args[0]))}") from error
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            if isinstance(value_of(cfg, key), list | tuple):
                said = f'; it must be a list, as "{_as_list(str(value))}"'
            else:
                said = f": {_shortened(error)}"
            raise ValueError(f"{key} is {value!r:.100}{said}") from error


def _as_list(value: str) -> str:
    """Write the words of `value` as a list; a shell or YAML may have taken some of its signs."""
    words = re.findall(r"[^\s,'\"()\[\]]+", value)
    return f"[{', '.join(word if word.isdecimal() else repr(word) for word in words)}]"


def _shortened(error: Exception) -> str:
    """Return the message in one line; it may hold a whole section of the config."""
    words = " ".join(str(error).split())
    return words if len(words) < 400 else f"{words[:150]} ... {words[-150:]}"


def _nearest_key(cfg: CfgNode, message: str) -> str:
    key = message.rsplit(" ", 1)[-1].strip(".'\"")
    near = difflib.get_close_matches(key, [known for known, _ in flat_keys(cfg)], n=1)
    return f"; did you mean {near[0]}?" if near else ""
