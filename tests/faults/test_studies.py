"""Studies and their folders: shared, spoilt, of other versions, on disks that are full."""

import fcntl
import json
import pickle
import signal
from types import SimpleNamespace

import pytest
import yaml

from bn_detect.commands import domain_shift
from bn_detect.commands import study as command
from bn_detect.runtime.errors import CheckpointError
from bn_detect.runtime.folder_lock import sole_user
from bn_detect.study.execution import execute
from bn_detect.study.execution.pool import run_here
from bn_detect.study.execution.steps import StudyTrainer
from tests.helpers.in_process import config

from .studies import files, one_line
from .test_disk import files_no_larger_than, mounted
from .test_pickles import proposals
from .test_trust import Evil


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch) -> None:
    for module in (command, domain_shift):
        monkeypatch.setattr(module, "run_missing", None)


OTHERS = {
    "another study": '{"study": {"name": "another"}}',
    "something else": "[1]",
    "no JSON": "{",
}


@pytest.mark.parametrize("name", ["study", "study --force", "domain-shift"])
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.fault(
    "bn-detect {name} with an --output whose results.json holds {kind}",
    should="one line that names it, exit code 2, and all stays",
)
def test_results_of_others(kind, name, studies, tmp_path, capsys, happened):
    (tmp_path / "results.json").write_text(OTHERS[kind])
    (tmp_path / "report.html").write_text("a report")
    before = files(tmp_path)
    assert studies.main(*name.split()[:1], tmp_path, *name.split()[1:]) == 2
    happened(one_line(capsys, tmp_path, "use another --output").replace(str(tmp_path), "FOLDER"))
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["study", "domain-shift"])
@pytest.mark.fault(
    "bn-detect {name} in the --output of one that runs", should="one line, exit code 2; no file"
)
def test_two_at_once(name, studies, tmp_path, capsys, happened):
    with sole_user(tmp_path, "--output"):
        assert studies.main(name, tmp_path) == 2
    happened(one_line(capsys, f"--output {tmp_path} is in use by").replace(str(tmp_path), "FOLDER"))
    assert files(tmp_path) == {}


@pytest.mark.fault(
    "bn-detect study --force while another process is at a run", should="the run is not deleted"
)
def test_force_spares_a_run_in_progress(studies, tmp_path, capsys, happened):
    planned = studies.run(tmp_path)
    before = files(tmp_path)
    with open(planned.folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert studies.main("study", tmp_path, "--force") == 2
    line = one_line(capsys, f"another process is at the run in {planned.folder}")
    happened(line.replace(str(tmp_path), "FOLDER"))
    assert files(tmp_path) == before


NUMBERS = '"seed": 1, "iterations": 2, "train_seconds": 1, "measure_seconds": 1'
SPOILT = {
    "run.json": ["[1]"],
    "measurements.json": [
        '{"measures": 5}',
        '{"measures": {}, "started": {}, "measured": {}}',
        '{"arm": "an arm", "measures": {}, "started": {}, "measured": {"x": [1]}, NUMBERS}',
        '{"arm": "another", "measures": {}, "started": {}, "measured": {}, NUMBERS}',
    ],
    "status.json": ["{"],
    "versions.json": ["null"],
    "settings.yaml": ["5", "!!python/object/apply:os.mkdir ['MARK']"],
}


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.fault(
    "{name} in the folder of a run holds something else, or a tag that executes code",
    should="one line that names it, exit code 2; nothing is executed or lost",
)
def test_spoilt_run_folders(name, studies, tmp_path, capsys, happened):
    planned, mark = studies.run(tmp_path / "out"), tmp_path / "mark"
    for content in SPOILT[name]:
        content = content.replace("MARK", str(mark)).replace("NUMBERS", NUMBERS)
        (planned.folder / name).write_text(content)
        before = files(tmp_path)
        assert studies.main("study", tmp_path / "out") == 2
        line = one_line(capsys, planned.folder / name)
        assert files(tmp_path) == before and not mark.exists()
    happened(line.replace(str(planned.folder), "FOLDER")[:200])


@pytest.mark.fault(
    "metrics.json in the folder of a run holds something else",
    should="such lines do not count, and the run goes on",
)
def test_spoilt_metrics(studies, tmp_path, happened):
    planned = studies.run(tmp_path)
    lines = [
        b"7",
        b"[1]",
        b"{}",
        b'{"total_loss": 1}',
        b"\xff\0",
        b"[" * 5000,
        b'{"iteration": "x"',
    ]
    good = b'{"iteration": 0, "total_loss": 1.5, "time": 0.1}'
    (planned.folder / "metrics.json").write_bytes(b"\n".join([*lines, good, *lines]))
    assert studies.main("study", tmp_path, "--dry-run") == 0
    assert planned.iterations_done() == 1
    happened(f"{2 * len(lines)} lines left out, one read")


@pytest.mark.fault(
    "another version of Detectron2 knows one key more, or less, than the one that made a run",
    should="the run goes on where the key has its default; else key and versions are named",
)
def test_other_versions(studies, tmp_path, capsys, happened):
    planned = studies.run(tmp_path)
    path = planned.folder / "settings.yaml"
    kept = yaml.safe_load(path.read_text())
    del kept["SOLVER"]["BASE_LR_END"]
    path.write_text(yaml.safe_dump(kept))
    assert studies.main("study", tmp_path, "--dry-run") == 0
    kept["SOLVER"]["OF_ANOTHER_VERSION"] = 1
    path.write_text(yaml.safe_dump(kept))
    versions = {"training": {"detectron2": "9.8"}}
    (planned.folder / "versions.json").write_text(json.dumps(versions))
    capsys.readouterr()
    assert studies.main("study", tmp_path, "--dry-run") == 2
    parts = ("SOLVER.OF_ANOTHER_VERSION 1, not None", "made with Detectron2 9.8, and here is")
    happened(one_line(capsys, *parts).replace(str(tmp_path), "FOLDER"))


@pytest.mark.parametrize("disk", ["read-only", "full (ulimit -f)"])
@pytest.mark.parametrize("name", ["study", "domain-shift"])
@pytest.mark.fault(
    "bn-detect {name} on a disk that is {disk}",
    should="one line that names a file there, exit code 2, before anything starts",
)
def test_disks(name, disk, studies, tmp_path, capsys, happened):
    if disk == "read-only":
        with mounted(tmp_path / "ro", "ro") as folder:
            assert studies.main(name, folder / "out") == 2
    else:
        with files_no_larger_than(1000):  # less than a run's settings
            assert studies.main(name, tmp_path / "out") == 2
    happened(one_line(capsys, tmp_path).replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "the disk of a study is full when a run begins", should="an error that names the file"
)
def test_a_disk_that_fills_up(studies, tmp_path, happened):
    with mounted(tmp_path / "small", "size=200k") as folder:
        planned = studies.run(folder)
        before = files(folder)
        with open(folder / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(OSError, match="No space left") as error:
            run_here([[planned]], 1, lambda: None)
        (folder / "ballast").unlink()
        assert files(folder) == before and str(planned.folder) in str(error.value)
        happened(str(error.value).replace(str(folder), "FOLDER"))


@pytest.mark.fault(
    "the process of a run is killed before it opens its log",
    should="the run has failed, and says so; the others go on",
)
def test_no_log(studies, tmp_path, monkeypatch, happened):
    planned = studies.run(tmp_path)
    dead = SimpleNamespace(exitcode=-signal.SIGKILL, pid=None, join=lambda: None)
    monkeypatch.setattr(execute.child, "start", lambda *_: dead)
    run_here([[planned]], 1, lambda: None)
    assert planned.status()["state"] == "failed"
    happened(" ".join(planned.status()["error"].split()))


@pytest.mark.fault(
    "a study whose config names a file of proposals that executes code",
    should="refused, nothing executed",
)
def test_proposals_with_code(server, tmp_path, happened):
    mark, file = tmp_path / "mark", tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps(proposals(server.root) | {"more": Evil(mark)}))
    keys = {"LOAD_PROPOSALS": True, "PROPOSAL_GENERATOR__NAME": "PrecomputedProposals"}
    keys = {f"MODEL__{key}": value for key, value in keys.items()}
    cfg = config(server.root, tmp_path, DATASETS__PROPOSAL_FILES_TRAIN=f"('{file}',)", **keys)
    with pytest.raises(CheckpointError, match="may execute code") as error:
        StudyTrainer(cfg, tmp_path, {})
    assert not mark.exists()
    happened(str(error.value).replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "bn-detect study --jobs 1000 --dry-run, with one run of 90 s",
    should="the estimate is that of the longest run",
)
def test_many_jobs_do_not_shorten_a_run(studies, tmp_path, capsys, happened):
    file = tmp_path / "study.yaml"
    file.write_text(studies.file.read_text() + "seconds_per_run: 90\n")
    words = ["--study", str(file), "--output", str(tmp_path / "out")]
    assert command.main([*words, "--jobs", "1000", "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "time left" in line]
    assert "1 runs, 1 at once" in line and "90 s" in line
    happened(line)


# Of a study of 6 validation images, 2 of them a step.
TOO_FEW = {
    "companion_swap": ({}, 4, "an arm", "in_process_val has 6 images"),
    "domain_shift": ({"num_images": [7]}, 2, "at most its 6", "7 images"),
    "domain_shift images_of": ({"images_of": "in_process_vla"}, 2, "'in_process_vla'", "images_of"),
}


@pytest.mark.parametrize("name", TOO_FEW)
@pytest.mark.fault(
    "a study whose measure ({name}) names images that are not there, or more than there are",
    should="one line that names the measure, exit code 2, before anything is trained",
)
def test_too_few_images(name, studies, tmp_path, capsys, happened):
    options, images, *parts = TOO_FEW[name]
    content = yaml.safe_load(studies.file.read_text())
    content["measure"] = [{name.split()[0]: {"corruptions": [], **options} if options else {}}]
    content["options"] = {"SOLVER.IMS_PER_BATCH": images}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    assert command.main(["--study", str(file), "--output", str(tmp_path / "out")]) == 2
    line = one_line(capsys, f"measure: {name.split()[0]}: ", *parts)
    assert not (tmp_path / "out/runs").exists()
    happened(line.replace(str(tmp_path), "FOLDER"))
