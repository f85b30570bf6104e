"""Checkpoints that are whole or not there."""

import os
import zlib
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..distributed.collectives import all_gather_int, default_group
from ..files import write_atomically
from ..layers import fill_domains


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

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in the parent; a collective where it resumes.

        Raises:
            ValueError: ranks see different latest checkpoints, or only some see one; they would
                begin at different iterations, and wait for one another.
        """
        if resume:
            latest = Path(self.get_checkpoint_file()).name if self.has_checkpoint() else ""
            device = next(self.model.parameters()).device
            names = all_gather_int(zlib.crc32(latest.encode()), device, default_group())
            others = [str(rank) for rank, name in enumerate(names) if name != names[0]]
            if others:
                raise ValueError(
                    f"--resume: OUTPUT_DIR {self.save_dir} has another latest checkpoint, or none, "
                    f"on rank {', '.join(others)} than on rank 0; it must be a folder that all "
                    "machines share, or the same copy on each"
                )
        return super().resume_or_load(path, resume=resume)

    def _load_model(self, checkpoint: Any) -> Any:
        """As in the parent; shared statistics of a `DomainBatchNorm2d` also fit one per domain."""
        fill_domains(self.model, checkpoint["model"])
        return super()._load_model(checkpoint)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(
            Path(self.save_dir, "last_checkpoint"),
            lambda file: file.write(last_filename_basename.encode()),
        )
