"""Read the RoIs of each image off a call of a pooler."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def rois_of_call(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], head: str
) -> Sequence[Any]:
    """Return the second argument of a call of `module`, however it was passed.

    Args:
        args, kwargs: of the call.
        head: name of the head, for messages.

    Raises:
        ValueError: there is none, or it is not a list of the RoIs of each image.
    """
    value = args[1] if len(args) > 1 else None
    if value is None:
        names = list(inspect.signature(module.forward).parameters)
        value = kwargs.get(names[1]) if len(names) > 1 else None
    if not isinstance(value, list | tuple) or not all(hasattr(v, "__len__") for v in value):
        kind = "missing" if value is None else f"of type {type(value).__name__}"
        raise ValueError(
            f"{head}: the second argument of {type(module).__name__} is {kind}, but must be a list "
            "with the RoIs of each image, as that of a pooler; watch the pooler itself, or call "
            "layout.record(rois_per_image) before the head runs"
        )
    return value
