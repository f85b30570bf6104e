"""Options of the datasets that are made here: fields with a help text, a type and a range.

The command line, the check of a study and the record of a prepared dataset are all made from them.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a list of texts",
}


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[Any] | None = None,
    flag: str | None = None,
    recorded: bool = True,
    required: bool = False,
) -> Any:
    """Declare a field of a subclass of `Options`. Its type is that of `default`.

    Args:
        help: one phrase for the command line.
        low, high: range of a number, both ends included.
        choices: the values that are allowed.
        flag: name on the command line; default: `--field-name`.
        recorded: False for what does not change the dataset, such as where its source is read.
        required: whether a value other than `default` must be given.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "low": low,
            "high": high,
            "choices": choices,
            "flag": flag,
            "recorded": recorded,
            "required": required,
        },
    )


def source_option(what: str) -> Any:
    """Declare the field of where the source is, given as `--from`; "" downloads it."""
    return option("", f"{what}, if it is not to be downloaded", flag="--from", recorded=False)


@dataclass(frozen=True)
class Options:
    """Base class of the options of a dataset; a kind without options uses it as it is.

    Raises:
        ValueError: a value of another type or outside its range; the message names the field.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            value, rule = getattr(self, each.name), each.metadata
            kind: Any = type(each.default)
            if isinstance(value, list) and kind is tuple:
                value = tuple(value)
                object.__setattr__(self, each.name, value)
            accepted: Any = (int, float) if kind is float else kind
            fits = isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
            if not fits or (kind is tuple and not all(isinstance(item, str) for item in value)):
                raise ValueError(f"{each.name} must be {TYPE_NAMES[kind]}, got {value!r:.60}")
            if rule["required"] and value == each.default:
                raise ValueError(f"{each.name} must be given: {rule['help']}")
            if rule["choices"] is not None and value not in rule["choices"]:
                allowed = ", ".join(map(repr, rule["choices"]))
                raise ValueError(f"{each.name} must be one of {allowed}, got {value!r:.60}")
            check_range(each.name, value, rule["low"], rule["high"])

    def recorded(self) -> dict[str, Any]:
        """Return the values that decide what the dataset's files hold, as JSON has them."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["recorded"]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def check_range(name: str, value: Any, low: float | None, high: float | None) -> None:
    """Raise ValueError, naming `name`, where `value` is below `low` or above `high`."""
    if (low is None or value >= low) and (high is None or value <= high):
        return
    if high is None:
        raise ValueError(f"{name} must be at least {low}, got {value!r:.60}")
    raise ValueError(f"{name} must be in [{low}, {high}], got {value!r:.60}")
