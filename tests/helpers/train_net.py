"""A tiny detector on a tiny dataset, trained by the real command."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.helpers.coco_folder import make_coco_folder

REPOSITORY = Path(__file__).parents[2]

TINY = {
    "DATASETS.TRAIN": "('coco_2017_train',)",
    "DATASETS.TEST": "()",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 32,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 16,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "INPUT.MIN_SIZE_TRAIN": "(48, 64)",
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.STEPS": "()",
}


class Command:
    """`tools/train_net.py` with tiny settings, as a process of its own."""

    def __init__(self, datasets: Path) -> None:
        self.environment = os.environ | {"DETECTRON2_DATASETS": str(datasets)}
        self.environment |= {"GLOO_SOCKET_IFNAME": "lo"}

    def arguments(self, output: Path, *flags: object, batch: str = "shuffled", **keys) -> list[str]:
        """Command line after the program; `keys` in config spelling with __ for the dots."""
        settings = TINY | {"OUTPUT_DIR": output, "MODEL.ROI_BN.BATCH": batch}
        settings |= {key.replace("__", "."): value for key, value in keys.items()}
        config = REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml"
        options = [text for key, value in settings.items() for text in (key, str(value))]
        return ["--config-file", str(config), *map(str, flags), *options]

    def start(
        self,
        arguments: list[str],
        launcher: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen:
        program = [*prefix, sys.executable, *launcher, str(REPOSITORY / "tools/train_net.py")]
        # Not a pipe, which fills if nobody reads it. `end` reads the file.
        log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        process = subprocess.Popen(
            [*program, *arguments],
            env=self.environment | (environment or {}),
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        process.log = log
        return process

    def run(self, arguments: list[str], launcher: tuple[str, ...] = ()) -> str:
        """Run to the end, which must be a good one; returns what it printed."""
        process = self.start(arguments, launcher)
        printed = end(process, seconds=300)
        assert process.returncode == 0, printed[-4000:]
        return printed


@pytest.fixture(scope="session")
def datasets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    make_coco_folder(root, num_images=6, size=(96, 64), keypoints=False)
    return root


@pytest.fixture(scope="session")
def train_net(datasets) -> Command:
    return Command(datasets)


def wait_for(condition, seconds: float = 120.0) -> None:
    """Poll until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)


def end(process: subprocess.Popen, seconds: float = 120.0) -> str:
    """Wait for its end, which must come in time; returns what it printed."""
    try:
        process.wait(timeout=seconds)
    finally:
        process.kill()
    process.log.seek(0)
    return process.log.read()


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children that run Python workers, in the order of their start."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(int(child) for child in listed if _is_worker(child))


def _is_worker(pid: str) -> bool:
    try:
        return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return False
