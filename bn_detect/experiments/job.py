"""One training run of an experiment, and what was measured on it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.files import write_json


@dataclass(frozen=True)
class Job:
    """A run; its fields determine what it finds.

    Attributes:
        experiment: the module of this package that does it.
        arm: its setting, unique within the experiment.
        seed: of weights, images and shuffles.
        options: config KEYs and VALUEs over `training.CONFIG`.
        begins: arm of the same seed from whose checkpoint, after 4/5 of the iterations, it goes on.
    """

    experiment: str
    arm: str
    seed: int
    options: tuple[str, ...]
    begins: str = ""

    @property
    def label(self) -> str:
        return f"{self.experiment} {self.arm}, seed {self.seed}"

    def folder(self, output: Path, arm: str | None = None) -> Path:
        """Of this run, or of another arm of the same seed."""
        return output / "runs" / self.experiment / (arm or self.arm) / f"seed_{self.seed}"

    def found(self, output: Path) -> dict[str, Any] | None:
        """What was measured, "seconds" of the run among it; None where it is not finished.

        Raises:
            ValueError: its folder holds a run with other settings.
        """
        folder = self.folder(output)
        path = folder / "result.json"
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        if result["job"] != json.loads(json.dumps(asdict(self))):
            raise ValueError(
                f"{folder} holds a run with other settings; delete it, or use --output"
            )
        return result["found"]

    def keep(self, output: Path, found: dict[str, Any]) -> None:
        """Write what was measured: the run is finished."""
        write_json(self.folder(output) / "result.json", {"job": asdict(self), "found": found})
