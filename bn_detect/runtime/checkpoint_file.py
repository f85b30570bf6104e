"""Read checkpoint files that others made, or that a disk has spoiled: no code of theirs runs."""

import argparse
import mmap
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch

from .array_pickle import Refused, read_arrays
from .errors import CheckpointError
from .weights_file import SUFFIX, read_weights

ADVICE = "if you trust where it comes from, say --trust-checkpoint"


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-checkpoint`, for commands that load checkpoints."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load checkpoints even where that executes code they carry; only for files whose "
        "origin you trust",
    )


def read_checkpoint(path: str | Path, *, trust: bool = False, trust_by: str = ADVICE) -> Any:
    """Return what a checkpoint file holds, on the CPU.

    Files of torch.save are read with `weights_only`, pickles (.pkl) by `read_arrays`, safetensors
    files by their library: none of these can execute code. The checksums in a file of torch.save
    are verified, which torch does not do.

    Args:
        trust: read the file whatever it executes.
        trust_by: what a refusal says on that.

    Raises:
        CheckpointError: the file is damaged, of another kind, or might execute code.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.suffix == SUFFIX:
        return {"model": read_weights(path)}
    with open(path, "rb") as file:
        return _read(file, path, trust, trust_by)


def _read(file: IO[bytes], path: Path, trust: bool, advice: str) -> Any:
    try:
        if path.suffix == ".pkl":
            return _read_pickle(file, trust)
        _verify(file)
        return torch.load(file, map_location="cpu", weights_only=not trust)
    except MemoryError:
        raise
    except Refused as error:
        raise CheckpointError(f"{path} is refused: {error}; {advice}") from error
    except Exception as error:  # a file of another kind makes the readers raise nearly anything
        unpickling = isinstance(error, pickle.UnpicklingError)
        name = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if unpickling and name:
            message = f"{path} is refused: it may execute code ({name}); {advice}"
            raise CheckpointError(message) from error
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if unpickling:  # torch's text speaks of its own options
            text = "it cannot be unpickled"
        raise CheckpointError(f"{path} is damaged or no checkpoint: {text:.200}") from error


def _read_pickle(file: IO[bytes], trust: bool) -> Any:
    if trust:
        return pickle.load(file, encoding="latin1")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return read_arrays(content)


def _verify(file: IO[bytes]) -> None:
    """Check the CRC-32 of everything in a zip, as torch.save writes it; older files have none."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return
    with zipfile.ZipFile(file) as archive:
        try:
            damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"checksums do not fit ({error})") from error
    if damaged is not None:
        raise ValueError(f"checksums do not fit ({damaged})")
    file.seek(0)
