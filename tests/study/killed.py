"""A study that is killed while it trains, and started again."""

import json
import signal
from pathlib import Path

from bn_detect.commands.study import main
from tests.helpers.train_net import wait_for

from .conftest import start_study, write_study

ITERATIONS = 60
ARMS = [
    {"name": "Two workers", "options": {"MODEL.ROI_BN.VIRTUAL_WORKERS": 2}},
    {
        "name": "as it is",
        "inference_of": "Two workers",
        "options": {"MODEL.ROI_BN.TEST_STATS": "minibatch"},
        "reference": {"box AP": 41.3},
    },
    {"name": "broken", "options": {"MODEL.WEIGHTS": "no_such_file.pth"}},
]


class Killed:
    """A study after its second start; the first was killed while it trained."""

    def __init__(self, folder: Path) -> None:
        self.study = write_study(
            folder,
            ARMS,
            options={"SOLVER.MAX_ITER": ITERATIONS},
            measure=["evaluation", "companion_swap"],
        )
        self.output = folder / "out"
        self.arguments = ["--study", str(self.study), "--output", str(self.output)]
        self.trained = self.run("two_workers")
        process = start_study(*self.arguments, "--jobs", 1)
        try:
            wait_for(lambda: (self.trained / "last_checkpoint").exists(), 400)
            self.children = _descendants(process.pid)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        wait_for(lambda: not any(map(_alive, self.children)))
        self.checkpoint = (self.trained / "last_checkpoint").read_text()
        self.code = main([*self.arguments, "--jobs", "2"])
        self.results = json.loads((self.output / "results.json").read_text())

    def run(self, slug: str) -> Path:
        return self.output / "runs" / slug / "seed_1"


def _descendants(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return []
    return [d for child in map(int, listed) for d in (child, *_descendants(child))]


def _alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
