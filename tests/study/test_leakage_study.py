"""A study end to end: killed, resumed, with an arm that fails and one that reuses a checkpoint."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from bn_detect.commands.study import main
from bn_detect.runtime.errors import RunFailed
from bn_detect.study import results as results_module
from bn_detect.study.execution.measuring import measure, run_config
from bn_detect.study.execution.slurm import run_on_cluster
from bn_detect.study.folders import prepare_folders
from bn_detect.study.measures import evaluation as evaluating
from bn_detect.study.measures.registry import MEASURES
from bn_detect.study.reading import read_study
from bn_detect.study.results import Findings
from bn_detect.study.runs import plan_runs
from bn_detect.study.summary import Leaks
from tests.helpers.schema import misfits

from .conftest import write_study
from .killed import ITERATIONS, Killed


@pytest.fixture(scope="module")
def killed(datasets, tmp_path_factory) -> Killed:
    return Killed(tmp_path_factory.mktemp("study"))


def test_what_it_started_ends_with_it(killed):
    assert killed.children
    assert killed.checkpoint != "model_final.pth"  # else the training went on to its end


def test_training_goes_on_where_it_was_killed(killed):
    done = int(killed.checkpoint.removeprefix("model_").removesuffix(".pth")) + 1
    log = (killed.trained / "train.log").read_text()
    assert log.count("Starting training from iteration 0\n") == 1
    assert log.count(f"Starting training from iteration {done}\n") == 1


def test_the_trained_arm_is_measured(killed):
    (run,) = killed.results["arms"]["Two workers"]["runs"]
    assert (run["arm"], run["seed"], run["iterations"]) == ("Two workers", 1, ITERATIONS)
    assert run["train_seconds"] > 0 and run["measure_seconds"] > 0
    measures = run["measures"]
    training = measures["training_loss"]
    assert training["last"]["loss_cls"] > 0 and "fg_cls_accuracy" in training["last"]
    assert training["curves"]["iteration"][-1] == ITERATIONS - 1
    kinds = {"population", "minibatch", "precise"}
    assert set(measures["evaluation"]) == {"test_stats", *kinds}
    assert "AP" in measures["evaluation"]["precise"]["coco_2017_val"]["bbox"]
    assert {"mean", "low", "high"} <= measures["companion_swap"]["flip_rate"].keys()
    # What is measured is not evaluated at the end of training as well.
    assert not (killed.trained / "inference").exists()


def test_an_arm_that_differs_at_inference_reuses_the_checkpoint(killed):
    arm = killed.results["arms"]["as it is"]
    (run,) = arm["runs"]
    assert run["test_stats"] == "minibatch"
    assert arm["reference"] == {"box AP": 41.3}
    assert run["iterations"] == 0 and "training_loss" not in run["measures"]
    assert not (killed.run("as_it_is") / "train.log").exists()
    (trained,) = killed.results["arms"]["Two workers"]["runs"]
    assert trained["test_stats"] == "population"
    for name, result in run["measures"].items():
        assert result | {"test_stats": 0} == trained["measures"][name] | {"test_stats": 0}


def test_a_failing_arm_is_reported_and_the_others_go_on(killed):
    assert killed.code == 1
    arm = killed.results["arms"]["broken"]
    assert arm["runs"] == []
    (failed,) = arm["failed"]
    assert failed["seed"] == 1
    assert failed["error"].startswith("training ended with exit code 2")
    assert "no_such_file" in failed["error"]
    assert Path(failed["log"]).read_text().strip().endswith(failed["error"].splitlines()[-1])


def test_a_run_folder_says_what_was_run(killed):
    status = json.loads((killed.trained / "status.json").read_text())
    assert status == {"state": "measured"}
    versions = json.loads((killed.trained / "versions.json").read_text())
    assert {"training", "measuring"} == versions.keys() and "torch" in versions["training"]
    assert "VIRTUAL_WORKERS: 2" in (killed.trained / "settings.yaml").read_text()
    assert (killed.trained / "config.yaml").exists()
    assert killed.results["schema"] == 2 and killed.results["study"]["name"] == "tiny"
    assert (killed.output / "report.html").exists()


@pytest.mark.parametrize(
    ("processes", "exchange", "virtual"), [(1, "statistics", 2), (2, "features", 1)]
)
def test_two_workers_that_move_features_are_measured_by_fewer(
    killed, tmp_path, processes, exchange, virtual
):
    settings = yaml.safe_load((killed.trained / "settings.yaml").read_text())
    batch = {"BATCH": "shuffled", "EXCHANGE": "features", "VIRTUAL_WORKERS": 1}
    settings["MODEL"]["ROI_BN"] |= batch
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    roi_bn = run_config(tmp_path, {"imports": [], "workers": 2}, processes).MODEL.ROI_BN
    found = roi_bn.EXCHANGE, roi_bn.VIRTUAL_WORKERS
    assert found == (exchange, virtual)


def test_started_again_it_repeats_nothing(killed, capsys):
    before = _times(killed.trained) | _times(killed.run("as_it_is"))
    broken = (killed.run("broken") / "train.log").stat().st_size
    assert main(killed.arguments) == 1
    after = _times(killed.trained) | _times(killed.run("as_it_is"))
    again = ("settings.yaml", "run.json", ".lock", "status.json")  # they say the same
    assert {k: v for k, v in after.items() if k.name not in again} == {
        k: v for k, v in before.items() if k.name not in again
    }
    assert (killed.run("broken") / "train.log").stat().st_size > broken  # a failed run is retried
    printed = capsys.readouterr()
    assert "broken, seed 1" in printed.err
    results = json.loads((killed.output / "results.json").read_text())
    assert misfits(results) == []
    found = Leaks(Findings(results))
    for arm in results["arms"]:  # one sentence on each, and where to read more
        assert f"{arm} " in printed.out and found.sentence(arm) in printed.out
    assert str(killed.output / "report.html") in printed.out


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_plan(killed, capsys):
    assert main([*killed.arguments, "--seeds", "2", "--jobs", "2", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()[2:8]]
    assert rows[0][:4] == ["Two", "workers", "1", "trained,"] and "measured" in rows[0]
    assert "reused:" in rows[1] and "measured" in rows[1]
    assert "failed;" in rows[2]
    assert "new" in rows[3] and rows[3][-1] == "s"  # estimated from the first seed's
    assert "6 runs, 2 at once; time left: " in printed and "unknown" not in printed
    assert not killed.run("two_workers").with_name("seed_2").exists()


def test_a_folder_with_other_settings_is_named(killed, capsys, tmp_path):
    text = killed.study.read_text().replace("VIRTUAL_WORKERS: 2", "VIRTUAL_WORKERS: 1")
    other = tmp_path / "study.yaml"
    other.write_text(text)
    assert main(["--study", str(other), "--output", str(killed.output)]) == 2
    printed = capsys.readouterr().err
    assert f"{killed.trained} holds a run with other settings" in printed
    assert "MODEL.ROI_BN.VIRTUAL_WORKERS 2, not 1" in printed and "--force" in printed


def _trained_alone(killed: Killed, folder: Path) -> Path:
    """Return a folder of the trained run that nothing has measured."""
    for name in ("run.json", "settings.yaml", "model_final.pth", "metrics.json"):
        os.link(killed.trained / name, folder / name)
    return folder


def test_killed_while_measuring_it_measures_what_is_missing(killed, tmp_path, monkeypatch):
    """A folder as the measuring process leaves it when it is killed after the second evaluation."""
    folder = _trained_alone(killed, tmp_path)
    complete = json.loads((killed.trained / "measurements.json").read_text())
    partly = json.loads(json.dumps(complete))
    del partly["measures"]["evaluation"]["precise"], partly["measures"]["companion_swap"]
    partly["measured"] = {}
    (folder / "measurements.json").write_text(json.dumps(partly))
    asked = []
    real = evaluating.evaluate_under

    def evaluate_under(cfg, model, kinds):
        asked.extend(kinds)
        return real(cfg, model, kinds)

    monkeypatch.setattr(evaluating, "evaluate_under", evaluate_under)
    measure(folder)
    assert asked == ["precise"]
    found = json.loads((folder / "measurements.json").read_text())
    assert found["measure_seconds"] > partly["measure_seconds"]
    assert found["measured"] == complete["measured"]
    assert found["measures"].keys() == complete["measures"].keys()
    assert found["measures"]["training_loss"] == complete["measures"]["training_loss"]
    swaps = [measured["measures"]["companion_swap"] for measured in (found, complete)]
    changes = [swap["classification_foreground"]["change"] for swap in swaps]
    # Measured in another process, with other threads: the last bits of a convolution may differ.
    assert changes[0] == pytest.approx(changes[1], rel=1e-3, abs=1e-5)
    for kind in ("population", "minibatch"):  # kept as they were
        kept = [measured["measures"]["evaluation"][kind] for measured in (found, complete)]
        assert kept[0] == kept[1]


def test_jobs_of_submitit_probe_a_given_checkpoint(killed, tmp_path):
    """By its local executor; one job is done, and one fails."""
    weights = killed.trained / "model_final.pth"
    file = write_study(tmp_path, [{"name": "as trained"}], measure=["companion_swap"], train=False)
    study = dataclasses.replace(read_study(file), workers=2)
    shutil.copy(weights, tmp_path / "gone.pth")
    good, bad = (
        plan_runs(study, tmp_path / name, weights=str(path))[0]
        for name, path in (("good", weights), ("bad", tmp_path / "gone.pth"))
    )
    prepare_folders([*good, *bad])
    (tmp_path / "gone.pth").unlink()
    watched = []
    run_on_cluster([good, bad], tmp_path / "slurm", lambda: watched.append(1), cluster="local")
    assert watched
    assert good[0].measured and good[0].status() == {"state": "measured"}
    assert set(good[0].measurements()["measures"]) == {"companion_swap"}
    assert bad[0].status()["state"] == "failed" and "gone.pth" in bad[0].status()["error"]


def test_a_checkpoint_that_does_not_fit_is_an_error(killed, tmp_path):
    weights = str(killed.trained / "model_final.pth")
    options = {"MODEL.ROI_BOX_HEAD.NUM_CONV": 3}
    arms = [{"name": "x"}]
    file = write_study(tmp_path, arms, options=options, measure=["evaluation"], train=False)
    with pytest.raises(ValueError, match="arm 'x'.*does not fit the config.*box_head.conv3"):
        plan_runs(read_study(file), tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_a_head_of_detectron2_is_probed_as_it_was_trained(killed, tmp_path):
    """Its BatchNorm knows no workers: --num-gpus says how many there were."""
    options = {"MODEL.ROI_HEADS.NAME": "StandardROIHeads"}
    options["MODEL.ROI_BOX_HEAD.NAME"] = "FastRCNNConvFCHead"
    arms = [{"name": "x"}]
    file = write_study(tmp_path, arms, options=options, measure=["companion_swap"], train=False)
    weights = str(killed.trained / "model_final.pth")
    study = dataclasses.replace(read_study(file), workers=2)
    ((run,),) = plan_runs(study, tmp_path / "out", weights=weights)
    assert run.processes == 1 and run.datasets == ("coco_2017_val",)
    prepare_folders([run])
    measure(run.folder)
    (ours,) = killed.results["arms"]["Two workers"]["runs"]
    for of in ("change", "null", "own"):
        found, expected = (
            measured["measures"]["companion_swap"]["classification"][of]
            for measured in (run.measurements(), ours)
        )
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_failing_measure_does_not_stop_the_others(killed, tmp_path, monkeypatch):
    folder = _trained_alone(killed, tmp_path)

    def fail(subject, options, kept):
        yield {"part": 1}
        raise RuntimeError("no more\nmemory")

    broken = dataclasses.replace(MEASURES["evaluation"], take=fail)
    monkeypatch.setitem(MEASURES, "evaluation", broken)
    with pytest.raises(RunFailed, match="1 of 3 measures failed: evaluation: .* no more"):
        measure(folder)
    content = json.loads((folder / "measurements.json").read_text())
    assert content["failed"] == {"evaluation": "RuntimeError: no more memory"}
    assert set(content["measured"]) == {"training_loss", "companion_swap"}
    assert content["measures"]["evaluation"] == {"part": 1}


def test_a_full_disk_is_one_line(killed, monkeypatch, capsys):
    def write_json(path, value) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(results_module, "write_json", write_json)
    assert main(killed.arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and "No space left on device" in lines[0]
