"""Weights in the safetensors format, which holds tensors and cannot hold code."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .errors import CheckpointError
from .files import write_atomically

SUFFIX = ".safetensors"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is damaged or of another kind, or the library is not installed.
        OSError: the file cannot be opened.
    """
    safetensors = _library(path)
    with open(path, "rb") as file:
        content = file.read()
    try:
        return safetensors.load(content)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def write_weights(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all: for a name that ends in .safetensors only the
    model's tensors, for any other name all of it, as torch.save does.

    Args:
        checkpoint: its entry "model", where there is one, is the model's state.

    Raises:
        CheckpointError: the library is not installed.
        OSError: the file cannot be written.
    """

    def write(file: IO[bytes]) -> None:
        if Path(path).suffix != SUFFIX:
            torch.save(dict(checkpoint), file)
            return
        state = checkpoint.get("model", checkpoint)
        # Copies: the format refuses names that share memory, such as those of shared heads.
        own = {k: torch.as_tensor(v).detach().cpu().clone().contiguous() for k, v in state.items()}
        file.write(_library(path).save(own, metadata={"format": "pt"}))

    write_atomically(Path(path), write)


def _library(path: str | Path) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(f"{path} needs the library: pip install safetensors") from error
    return safetensors.torch
