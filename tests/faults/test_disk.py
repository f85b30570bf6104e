"""Disks that are full, spoil files, or may not be written."""

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from bn_detect.data import prepare_dataset
from bn_detect.runtime.checkpointer import AtomicCheckpointer
from bn_detect.runtime.errors import CheckpointError
from bn_detect.runtime.files import TEMPORARY, write_json

from .fork_server import wait_for
from .studies import files, one_line


@contextlib.contextmanager
def files_no_larger_than(limit: int) -> Iterator[None]:
    """As `ulimit -f`: writing beyond it fails."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory of its own; skips the test where it cannot be."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no command mount here")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["ulimit -f", "a full tmpfs"])
def full_disk(request, tmp_path) -> Iterator[tuple[Path, contextlib.AbstractContextManager]]:
    """A folder, and the time in which no more than 100 kB get into it."""
    if request.param == "ulimit -f":
        yield tmp_path, files_no_larger_than(100_000)
        return
    with mounted(tmp_path / "small", "size=300k") as folder:

        @contextlib.contextmanager
        def filled() -> Iterator[None]:
            left = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            (folder / ".ballast").write_bytes(bytes(max(0, left - 80_000)))
            yield
            (folder / ".ballast").unlink()

        yield folder, filled()


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".ballast")


@pytest.mark.fault(
    "no space left while a checkpoint is written ({full_disk})",
    should="an error that names the file; the checkpoint before it loads; nothing else is left",
)
@pytest.mark.parametrize("full_disk", ["ulimit -f", "a full tmpfs"], indirect=True)
def test_checkpoint(full_disk, happened):
    folder, full = full_disk
    small, large = nn.Linear(10, 10), nn.Linear(1000, 100)
    AtomicCheckpointer(small, str(folder)).save("model_0000001")
    kept = listed(folder)
    for name in ("model_0000001", "model_0000002"):
        with full, pytest.raises(OSError) as error:  # noqa: PT012
            AtomicCheckpointer(large, str(folder)).save(name)
        break_point = str(error.value)
        assert f"{name}.pth" in break_point
        assert error.value.errno in (errno.ENOSPC, errno.EFBIG) and listed(folder) == kept
        if name.endswith("1"):
            happened(break_point.replace(str(folder), "FOLDER"))
            full = files_no_larger_than(100_000)
    loaded = nn.Linear(10, 10)
    AtomicCheckpointer(loaded, str(folder)).resume_or_load("", resume=True)
    assert torch.equal(loaded.weight, small.weight)


@pytest.mark.fault(
    "no space left while results.json is written ({full_disk})",
    should="an error that names the file; the one before it is intact",
)
@pytest.mark.parametrize("full_disk", ["ulimit -f", "a full tmpfs"], indirect=True)
def test_result(full_disk, happened):
    folder, full = full_disk
    write_json(folder / "results.json", {"AP": 1})
    with full, pytest.raises(OSError) as error:
        write_json(folder / "results.json", list(range(100_000)))
    assert (folder / "results.json").read_text() == '{\n "AP": 1\n}'
    assert listed(folder) == ["results.json"]
    happened(str(error.value).replace(str(folder), "FOLDER"))


@pytest.mark.fault(
    "no space left while a dataset is made ({full_disk})",
    should="an error that names a file; the dataset before it is intact, or there is none",
)
@pytest.mark.parametrize("full_disk", ["ulimit -f", "a full tmpfs"], indirect=True)
def test_dataset(full_disk, happened):
    folder, full = full_disk
    name, options = "leaky_shapes_disk", {"kind": "leaky_shapes", "images": 1, "val_images": 1}
    prepare_dataset(name, options, root=folder)
    kept = listed(folder)
    with full, pytest.raises(OSError) as error:
        prepare_dataset(name, options | {"images": 400}, root=folder, force=True)
    assert error.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert listed(folder) == kept
    assert str(folder) in str(error.value), str(error.value)
    assert not prepare_dataset(name, options, root=folder)
    happened(str(error.value).replace(str(folder), "FOLDER"))


def test_a_dataset_that_cannot_be_put_in_place_leaves_the_one_before(tmp_path, monkeypatch):
    name, options = "leaky_shapes_kept", {"kind": "leaky_shapes", "images": 1, "val_images": 1}
    prepare_dataset(name, options, root=tmp_path)
    kept, rename = listed(tmp_path), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name.endswith(".building"):
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="before is intact"):
        prepare_dataset(name, options | {"images": 2}, root=tmp_path, force=True)
    assert listed(tmp_path) == kept and not prepare_dataset(name, options, root=tmp_path)


@pytest.mark.fault(
    "no space left at the first checkpoint of two workers (tmpfs)",
    should="exit code 2, the file is named, no process is left",
)
def test_run(server, tmp_path, happened):
    with mounted(tmp_path / "small", "size=900k") as folder:
        run = server.start(folder, "--num-gpus", 2, SOLVER__CHECKPOINT_PERIOD=2)
        assert run.wait() == 2, run.printed[-3000:]
        assert not list(folder.glob("*.pth")) and not list(folder.glob(TEMPORARY))
    (line,) = [line for line in run.printed.splitlines() if line.startswith("error: worker 0")]
    assert "model_0000001.pth" in line
    happened(line.replace(str(folder), "FOLDER"))
    wait_for(lambda: not run.left())


def saved(folder: Path, numbers: tuple[int, ...] = (1, 3, 5)) -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20))
    for number in numbers:
        with torch.no_grad():
            model[0].weight.fill_(number)
        AtomicCheckpointer(model, str(folder)).save(f"model_000000{number}", iteration=number)
    return model


@pytest.mark.fault(
    "the newest checkpoint has been cut off, at random lengths",
    should="refused with its name, and the one before it offered",
)
def test_truncated(tmp_path, size, happened):
    model, rng = saved(tmp_path), random.Random(0)
    path = tmp_path / "model_0000005.pth"
    content = path.read_bytes()
    lengths = [0, 1, len(content) - 1, *(rng.randrange(len(content)) for _ in range(size(6, 60)))]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as error:
            AtomicCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
        assert str(path) in str(error.value) and "is model_0000003.pth:" in str(error.value), length
    happened(f"{len(lengths)} lengths, all refused: {error.value}".replace(str(tmp_path), "FOLDER"))
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")  # as the message says
    found = AtomicCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert found["iteration"] == 3 and model[0].weight.eq(3).all()


@pytest.mark.fault(
    "a bit of the newest checkpoint has flipped, at random places",
    should="refused with its name, or (between its parts) the content is what was written",
)
def test_bit_flips(tmp_path, size, happened):
    model, rng, refused = saved(tmp_path), random.Random(0), 0
    wanted = {key: value.clone() for key, value in model.state_dict().items()}
    path = tmp_path / "model_0000005.pth"
    content = path.read_bytes()
    flips = size(40, 500)
    for _ in range(flips):
        spoilt = bytearray(content)
        spoilt[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        try:
            AtomicCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())
    assert refused > flips / 4
    happened(f"{flips} flips: {refused} refused, {flips - refused} without effect on the content")


@pytest.mark.fault("the output folder is read-only", should="exit code 2, one line that names it")
def test_read_only(server, tmp_path, happened):
    with mounted(tmp_path / "ro", "ro") as folder:
        run = server.start(folder / "out", "--num-gpus", 2)
        assert run.wait() == 2, run.printed[-2000:]
        lines = [line for line in run.printed.splitlines() if line.startswith("error: ")]
        assert lines and str(folder / "out") in lines[0]
        happened(lines[0].replace(str(folder), "FOLDER"))


@pytest.mark.fault(
    "--resume in the output folder of a run with another config: {change}",
    should="exit code 2; what does not fit is named, and the checkpoint stays",
)
@pytest.mark.parametrize("change", ["a wider layer", "a layer less"])
def test_other_config(server, tmp_path, change, happened):
    keys = {"SOLVER__MAX_ITER": 2}
    server.run(tmp_path, **keys)
    before = (tmp_path / "model_final.pth").read_bytes()
    other = {"a wider layer": {"MODEL__ROI_BOX_HEAD__CONV_DIM": 16}}.get(
        change, {"MODEL__ROI_BOX_HEAD__NUM_CONV": 1}
    )
    run = server.start(tmp_path, "--resume", **keys | other)
    assert run.wait() == 2, run.printed[-2000:]
    (line,) = [line for line in run.printed.splitlines() if line.startswith("error: ")]
    assert "--resume: the checkpoint does not fit the config" in line and "box_head.conv" in line
    assert (tmp_path / "model_final.pth").read_bytes() == before
    happened(line.replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "the output folder of another study, of other options, or of something else",
    should="refused before anything is written",
)
def test_other_study(studies, tmp_path, happened, capsys):
    folder = tmp_path / "runs/an_arm/seed_1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"arm": "of another study", "seed": 1}')
    (folder / "settings.yaml").write_text("SEED: 7\n")
    before = files(tmp_path)
    assert studies.main("study", tmp_path) == 2
    line = one_line(capsys, "holds a run with other settings (", folder)
    assert files(tmp_path) == before
    (folder / "run.json").write_text("not JSON")
    assert studies.main("study", tmp_path) == 2
    one_line(capsys, folder / "run.json")
    assert (folder / "run.json").read_text() == "not JSON"
    happened(line.replace(str(tmp_path), "FOLDER")[:200])
