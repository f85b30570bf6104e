"""Checkpoints that are whole or not there."""

import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..files import write_atomically


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
