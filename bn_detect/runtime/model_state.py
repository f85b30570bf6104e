"""The state of a model in a checkpoint file: found, and loaded with nothing left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint_file import read_checkpoint
from .errors import CheckpointError

ENTRIES = ("model", "state_dict", "model_state_dict")  # where training scripts keep the model


def read_state(path: str | Path, *, trust: bool) -> tuple[Any, dict[str, Any]]:
    """Return what the file of `--weights` holds, and of it (or in it) the state of the model.

    Raises:
        ValueError: the file is missing, holds no state of a model, or see `read_checkpoint`.
    """
    if not Path(path).is_file():
        raise ValueError(f"--weights {path}: no such file")
    try:
        content = read_checkpoint(path, trust=trust)
    except CheckpointError as error:
        raise ValueError(f"--weights: {error}") from error
    state = content
    if isinstance(content, dict):
        entries = (content[key] for key in ENTRIES if isinstance(content.get(key), dict))
        state = next(entries, content)
    if not isinstance(state, dict) or not any(torch.is_tensor(v) for v in state.values()):
        raise ValueError(
            f"--weights {path} holds no state of a model, by itself or as one of its entries "
            f"{', '.join(ENTRIES)}"
        )
    return content, state


def load_whole(
    model: nn.Module, state: dict[str, Any], misfit: str, *, exact: bool = False
) -> None:
    """Load every parameter and buffer of a model.

    Args:
        misfit: how the line of an error starts, such as "FILE does not fit MODEL".
        exact: the state may have nothing else.

    Raises:
        CheckpointError: an entry is missing, or has another shape: that part of the model would
            stay at its initial values. Or see `exact`.
    """
    try:
        missing, more = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{misfit}: {' '.join(str(error).split()):.300}") from error
    check_fit(misfit, missing, more if exact else [])


def check_fit(
    misfit: str, missing: Sequence[str], more: Sequence[str], lacks: str = "lacks"
) -> None:
    """Raise CheckpointError with the first of the entries that a state lacks, or has beside those
    of the model. Counts of batches may be missing: nothing here reads them."""
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    for what, keys in ((lacks, missing), ("has also", more)):
        if keys:
            raise CheckpointError(
                f"{misfit}: it {what} {', '.join(keys[:3])}{' and others' if len(keys) > 3 else ''}"
            )
