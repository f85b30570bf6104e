"""The checkpointer of the trainer: files that are whole or not there, and are read with care."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed.collectives import all_gather_int, default_group
from ..layers import fill_levels
from .checkpoint_file import read_checkpoint
from .errors import CheckpointError
from .files import write_atomically
from .model_state import check_fit


class AtomicCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that writes whole files, `last_checkpoint` last, and reads files with
    care.

    Args:
        trust: load files that may execute code, too.
        whole: raise where Detectron2 warns: when a checkpoint lacks a part of the model, or has it
            in another shape, that part would stay at its initial values. A run is resumed from a
            checkpoint of exactly its model only, whatever `whole` is.
        kwargs: see the parent.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        trust: bool = False,
        whole: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self.trust, self._whole, self._resumes = trust, whole, False
        self._was_read = False  # the file that is being loaded

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `{name}.pth` in `save_dir` and point `last_checkpoint` at it.

        Args:
            kwargs: further entries of the checkpoint, such as `iteration`.

        Raises:
            FloatingPointError: running statistics are not finite; names the layer.
            OSError: see `write_atomically`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        self._check_statistics(name)
        data = {"model": self.model.state_dict()}
        data |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data |= kwargs
        basename = f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, basename)}")
        write_atomically(Path(self.save_dir, basename), lambda file: torch.save(data, file))
        self.tag_last_checkpoint(basename)

    def _check_statistics(self, name: str) -> None:
        layers = [(n, m) for n, m in self.model.named_modules() if isinstance(m, _BatchNorm)]
        parts = [
            (n, b) for n, m in layers for b in (m.running_mean, m.running_var) if b is not None
        ]
        finite = torch.stack([b.isfinite().all() for _, b in parts]).tolist() if parts else []
        if not all(finite):
            layer = parts[finite.index(False)][0]
            raise FloatingPointError(
                f"{name} is not saved: the running statistics of {layer} are not finite"
            )

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume as the parent does; a collective where it resumes.

        Raises:
            CheckpointError: see `read_checkpoint`; the run to be resumed has another model; or the
                ranks see different latest checkpoints, so that they would start at different
                iterations and wait for one another.
        """
        if not resume:
            return super().resume_or_load(path, resume=False)
        latest = Path(self.get_checkpoint_file()).name if self.has_checkpoint() else ""
        device = next(self.model.parameters()).device
        names = all_gather_int(zlib.crc32(latest.encode()), device, default_group())
        others = [str(rank) for rank, name in enumerate(names) if name != names[0]]
        if others:
            raise CheckpointError(
                f"--resume: OUTPUT_DIR {self.save_dir} has another latest checkpoint, or none, "
                f"on rank {', '.join(others)} than on rank 0; it must be a folder that all "
                "machines share, or the same copy on each"
            )
        if not latest:
            return super().resume_or_load(path, resume=False)
        self._resumes, self._was_read = True, False
        try:
            return super().resume_or_load(path, resume=True)
        except CheckpointError as error:
            other = "" if self._was_read else self._one_before(latest)
            raise CheckpointError(f"--resume: {error}{other}") from error
        finally:
            self._resumes = False

    def _one_before(self, latest: str) -> str:
        """Return what to say of the run's newest other checkpoint that can be read."""
        others = sorted(Path(self.save_dir).glob("model_*.pth"), key=lambda p: p.stat().st_mtime)
        for path in reversed(others):
            if path.name == latest:
                continue
            try:
                read_checkpoint(path, trust=self.trust)
            except (CheckpointError, OSError):
                continue
            return (
                f". The newest other one that can be read is {path.name}: to go on from it, write "
                f"its name into {Path(self.save_dir, 'last_checkpoint')}"
            )
        return ". There is no other one that can be read"

    def _load_file(self, filename: str) -> dict[str, Any]:
        # The parent reads .pkl and .pyth files itself, whatever they execute. What it makes of
        # their content, this makes of it.
        suffix = Path(filename).suffix
        if suffix not in (".pkl", ".pyth"):
            data = super()._load_file(filename)
            _check_state(data["model"], filename)
            return data
        data = self._torch_load(filename)
        if suffix == ".pyth":  # of pycls
            if not isinstance(data.get("model_state"), dict):
                raise CheckpointError(f"{filename} holds no 'model_state', as files of pycls do")
            state = _check_state(data["model_state"], filename)
            state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
            return {"model": state, "__author__": "pycls", "matching_heuristics": True}
        if "model" in data and "__author__" in data:
            _check_state(data["model"], filename)
            return data
        state = _check_state(data.get("blobs", data), filename)
        state = {key: value for key, value in state.items() if not key.endswith("_momentum")}
        return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, filename: str) -> dict[str, Any]:
        data = read_checkpoint(filename, trust=self.trust)
        if not isinstance(data, dict):
            raise CheckpointError(f"{filename} holds a {type(data).__name__}, not a model's state")
        return data

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self._was_read = True
        fill_levels(self.model, checkpoint["model"])  # shared statistics fit one per level too
        misfits = super()._load_model(checkpoint)
        if not (self._whole or self._resumes):
            return misfits
        missing = [*misfits.missing_keys, *(key for key, *_ in misfits.incorrect_shapes)]
        more = misfits.unexpected_keys if self._resumes else []
        misfit = "the checkpoint does not fit the config"
        check_fit(misfit, missing, more, "lacks, or has in another shape,")
        return misfits

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(
            Path(self.save_dir, "last_checkpoint"),
            lambda file: file.write(last_filename_basename.encode()),
        )


def _check_state(state: Any, filename: str) -> dict[str, Any]:
    """Return a model's state; CheckpointError where it holds anything but named tensors."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{filename}: 'model' is a {type(state).__name__}, no model's state")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor | np.ndarray)):
            raise CheckpointError(
                f"{filename} holds {name!r:.60}, a {type(value).__name__}, in place of a tensor; "
                "save the model's state_dict by itself, or as the entry 'model'"
            )
    return state
