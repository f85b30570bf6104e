"""Checkpoints that are whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write(file)` on a temporary file beside `path` and put it in place when it is on disk.

    A process killed at any moment leaves the old file or the new one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class AtomicCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` whose files appear whole, and `last_checkpoint` after them."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `{name}.pth` in `save_dir` and point `last_checkpoint` at it.

        Args:
            kwargs: further entries of the checkpoint, such as `iteration`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data |= kwargs
        basename = f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, basename)}")
        write_atomically(Path(self.save_dir, basename), lambda file: torch.save(data, file))
        self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(
            Path(self.save_dir, "last_checkpoint"),
            lambda file: file.write(last_filename_basename.encode()),
        )
