"""What studies measure and report: measures that fail, misfits, domains, names, pictures."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from bn_detect.commands import domain_shift
from bn_detect.commands import study as command
from bn_detect.runtime.errors import RunFailed, WorkerDied
from bn_detect.study.execution import measuring
from bn_detect.study.folders import prepare_folders
from bn_detect.study.measures.domain_table import domains
from bn_detect.study.measures.registry import MEASURES
from bn_detect.study.reading import read_study
from bn_detect.study.report import own_tables, write_report
from bn_detect.study.results import Findings, collect
from bn_detect.study.runs import plan_runs
from tests.study.made_up import finished, flip, run, study

from .studies import files, one_line


@pytest.mark.parametrize("how", ["dies", "cannot read a file"])
@pytest.mark.fault(
    "a worker {how} in one of the measures that all workers take",
    should="the other measures are taken, those of all workers too; what failed and why is kept",
)
def test_measures_of_several_workers(how, studies, tmp_path, monkeypatch, happened):
    planned, taken = studies.run(tmp_path), []
    content = json.loads((planned.folder / "run.json").read_text())
    shared = {"evaluation": {}, "domain_shift": {}}
    content |= {"processes": 2, "measure": {**shared, "companion_swap": {}}}
    (planned.folder / "run.json").write_text(json.dumps(content))

    def launch(take, processes, *, args, **_) -> None:
        """Two workers, of which one ends in the first measure."""
        if "evaluation" in args[1]:
            raise WorkerDied("worker 1 of 2 died (SIGKILL)") if how == "dies" else SystemExit(2)
        assert processes == 2
        take(*args)

    def take(folder: Path, names: list[str]) -> dict:
        taken.extend(names)
        measurements = measuring.Measurements(folder)
        for name in names:
            measurements.complete(name)
        return {}

    monkeypatch.setattr(measuring, "launch", launch)
    monkeypatch.setattr(measuring, "_take", take)
    with pytest.raises(RunFailed, match="1 of 3 measures failed: evaluation: ") as error:
        measuring.measure(planned.folder)
    assert taken == ["domain_shift", "companion_swap"]
    kept = planned.measurements()
    assert set(kept["failed"]) == {"evaluation"} and set(kept["measured"]) == set(taken)
    happened(str(error.value))


@pytest.mark.fault(
    "a probe fails in a run of one process",
    should="the measures after it are taken; the report shows the cause",
)
def test_a_probe_that_fails(studies, tmp_path, monkeypatch, happened):
    planned = dataclasses.replace(
        studies.run(tmp_path), measure={"companion_swap": {}, "detections": {}}
    )
    prepare_folders([planned])

    def take(name: str, subject, measurements: measuring.Measurements) -> None:
        if name == "companion_swap":
            raise RuntimeError("no group\nhas two RoIs")
        measurements.complete(name)

    monkeypatch.setattr(measuring, "load_model", lambda *_: None)
    monkeypatch.setattr(measuring, "_take_one", take)
    with pytest.raises(RunFailed) as error:
        measuring.measure(planned.folder)
    assert set(planned.measurements()["measured"]) == {"detections"}
    planned.set_status("failed", error=str(error.value), log="measure.log")  # as a run's end does
    results = collect(read_study(studies.file), [planned], tmp_path, "bn-detect study")
    page = write_report(results, tmp_path).read_text()
    assert "RuntimeError: no group has two RoIs" in page
    happened(str(error.value))


@pytest.mark.fault(
    "an arm's name holds a line break and bars", should="table.md has one row for each arm"
)
def test_names_in_the_table(tmp_path, happened):
    name = "one | two\n| three"
    arms = {n: {"runs": [run(n, 1, swap=0.5, ap=20.0)]} for n in (name, "plain")}
    write_report(study(arms), tmp_path)
    lines = (tmp_path / "table.md").read_text().strip().splitlines()
    bars = {line.replace("\\|", "").count("|") for line in lines}
    assert len(lines) == 4 and len(bars) == 1
    happened(lines[2][:60])


@pytest.mark.fault(
    "an arm's name holds a line break and bars, in a measure with tables of its own",
    should="a heading in one line",
)
def test_names_in_other_tables(tmp_path, monkeypatch, happened):
    name, seen = "one | two\n| three", []
    measure = dataclasses.replace(MEASURES["domain_shift"], tables=lambda r: seen.extend(r) or "")
    monkeypatch.setitem(MEASURES, "domain_shift", measure)
    own_tables(Findings(study({name: {"runs": [finished(name, 1, {"domain_shift": {}})]}})))
    assert seen == ["one / two / three"]
    happened(seen[0])


@pytest.mark.parametrize("name", ["对照", "../../outside"])
@pytest.mark.fault("an arm is called {name!r}", should="it has a folder of its own in the study's")
def test_folders_of_arms(name, studies, tmp_path, happened):
    content = yaml.safe_load(studies.file.read_text()) | {"arms": [{"name": name}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    ((planned,),) = plan_runs(read_study(tmp_path / "study.yaml"), tmp_path / "out")
    prepare_folders([planned])
    assert planned.folder.resolve().parents[1] == tmp_path / "out/runs"
    assert json.loads((planned.folder / "run.json").read_text())["arm"] == name
    happened(f"{planned.folder}".replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "a study of a checkpoint that does not fit the config",
    should="one line that says what does not fit, exit code 2, before anything is measured",
)
def test_misfits(studies, tmp_path, capsys, monkeypatch, happened):
    monkeypatch.setattr(command, "run_missing", None)
    content = yaml.safe_load(studies.file.read_text()) | {"train": False}
    content["options"] = {"MODEL.ROI_BOX_HEAD.CONV_DIM": 48}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    words = [tmp_path / "study.yaml", "--weights", studies.weights, "--output", tmp_path / "out"]
    assert command.main([str(word) for word in words]) == 2
    line = one_line(capsys, "arm 'an arm'", "does not fit the config", "box_head.conv1.weight")
    assert not (tmp_path / "out").exists()
    happened(line.replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "a study is reported again from another folder, where the paths of its images lead nowhere",
    should="the pictures that show these images stay in the report",
)
def test_pictures(tmp_path, monkeypatch, happened):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    monkeypatch.chdir(here)
    arms = {"a": {"runs": [run("a", 1, swap=0.5, ap=28.0, flips=[flip(Path())])]}}
    write_report(study(arms), tmp_path / "out")
    picture, page = tmp_path / "out/figures/flips.png", tmp_path / "out/report.html"
    before = picture.read_bytes(), page.read_text()
    monkeypatch.chdir(there)
    write_report(study(arms), tmp_path / "out")
    assert 'id="flips"' in before[1] and (picture.read_bytes(), page.read_text()) == before
    happened("picture and page are the same, byte for byte")


# Domain shift.


TWICE = ["--corruptions", "contrast", "fog", "contrast"]


@pytest.fixture
def begun(studies, tmp_path, monkeypatch) -> Path:
    """The folder of a domain-shift with one worker that was ended before its first number."""
    monkeypatch.setattr(domain_shift, "run_missing", lambda *_: None)
    assert studies.main("domain-shift", tmp_path, *TWICE) == 1
    monkeypatch.setattr(domain_shift, "run_missing", None)  # nothing may start
    return tmp_path


@pytest.mark.fault(
    "bn-detect domain-shift with a corruption named twice", should="it is measured and counts once"
)
def test_corruptions_named_twice(studies, begun, happened):
    (folder,) = (begun / "runs").glob("*/*")
    options = json.loads((folder / "run.json").read_text())["measure"]["domain_shift"]
    assert options["corruptions"] == ["contrast", "fog"]
    twice = options | {"corruptions": ["contrast", "fog", "contrast"]}  # as a study may say
    assert domains(twice, 3) == domains(options, 3) == ["clean", "contrast_3", "fog_3"]
    happened(f"the domains are {', '.join(domains(twice, 3))}")


@pytest.mark.fault(
    "bn-detect domain-shift in the --output of one with another --num-gpus",
    should="one line that says what differs and advises what the command has, exit code 2; all "
    "stays",
)
def test_other_workers(studies, begun, capsys, happened):
    before = files(begun)
    more = ["--num-gpus", "2", "SOLVER.IMS_PER_BATCH", "4"]
    assert studies.main("domain-shift", begun, *TWICE, *more) == 2
    line = one_line(capsys, "workers 1, not 2", "use another --output")
    assert "--force" not in line and files(begun) == before
    happened(line.replace(str(begun), "FOLDER"))
