"""What a study measured, for TensorBoard."""

import shutil
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from .summary import ArmSummary


def write_scalars(arms: list[ArmSummary], folder: Path) -> None:
    """A run per arm, and in it a scalar per column of the table, whose step is the seed.

    The curves of training are in the folders of the runs, where Detectron2 writes them.
    """
    shutil.rmtree(folder, ignore_errors=True)  # TensorBoard would show older reports too
    for number, arm in enumerate(arms):
        with SummaryWriter(str(folder / f"{number}_{_slug(arm.name)}")) as writer:
            for key, estimate in arm.found.items():
                for seed, value in zip(arm.seeds, estimate.values, strict=False):
                    writer.add_scalar(f"study/{_slug(key)}", value, seed)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
