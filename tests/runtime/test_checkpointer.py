"""Ranks resume from the same checkpoint, or not at all."""

from pathlib import Path

from torch import nn

from bn_detect.runtime.checkpointer import AtomicCheckpointer
from tests.helpers.ranks import run_ranks

CASES = {  # latest checkpoint in the folders of rank 0 and 1, None: none there
    "the same": (1, 1),
    "none": (None, None),
    "none on rank 1": (1, None),
    "none on rank 0": (None, 1),
    "an older one": (2, 1),
}


def resumed(rank: int, world_size: int, root: Path) -> dict[str, str]:
    """By case, the error on this rank, or "iteration N" of what was loaded."""
    return {name: resume(root / name / str(rank), CASES[name][rank]) for name in CASES}


def resume(folder: Path, latest: int | None) -> str:
    folder.mkdir(parents=True)
    if latest is not None:
        # Under a real run only rank 0 saves; here each host has what it has.
        saver = AtomicCheckpointer(nn.Linear(1, 1), str(folder), save_to_disk=True)
        saver.save(f"model_{latest}", iteration=latest)
    checkpointer = AtomicCheckpointer(nn.Linear(1, 1), str(folder))
    try:
        return f"iteration {checkpointer.resume_or_load('', resume=True).get('iteration')}"
    except ValueError as error:
        return str(error)


def test_ranks_that_see_other_checkpoints_are_told(tmp_path):
    for rank, results in enumerate(run_ranks(resumed, 2, tmp_path)):
        assert results.pop("the same") == "iteration 1"
        assert results.pop("none") == "iteration None"
        for name, message in results.items():
            assert message.startswith(f"--resume: OUTPUT_DIR {tmp_path / name / str(rank)} has ")
            assert "on rank 1 than on rank 0; it must be a folder that all machines" in message


def test_one_process_resumes_alone(tmp_path):
    assert resume(tmp_path / "new", None) == "iteration None"
    assert resume(tmp_path / "old", 3) == "iteration 3"
