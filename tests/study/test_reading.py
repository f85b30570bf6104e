"""Every mistake in a study's file is found before anything runs."""

import dataclasses
import json

import pytest
import yaml

from bn_detect.commands.study import main
from bn_detect.study.measures.registry import MEASURES
from bn_detect.study.plan import Arm, Study
from bn_detect.study.reading import read_study
from bn_detect.study.settings import arm_config

from ..helpers.train_net import REPOSITORY

STUDIES = REPOSITORY / "configs" / "studies"
WORKER = {"name": "worker", "options": {"MODEL.ROI_BN.BATCH": "worker"}}


def tree(**changes) -> dict:
    base = str(REPOSITORY / "configs/neon/faster_rcnn_lean_FPN_worker.yaml")
    return {"name": "a study", "base": base, "arms": [WORKER], **changes}


def write(folder, content) -> str:
    path = folder / "study.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def arms(*more: dict) -> dict:
    return tree(arms=[WORKER, *more])


MISTAKES = {
    "no YAML": ("{", ["study.yaml"]),
    "a list": ("- name", ["the study is ['name']", "mapping"]),
    "unknown key": (tree(seed=3), ["the key is 'seed'", "did you mean seeds?"]),
    "no name": ({"base": "x", "arms": []}, ["name is missing"]),
    "no arms": (tree(arms=[]), ["arms is []", "at least one"]),
    "arms of another kind": (tree(arms="worker"), ["arms is 'worker'", "list"]),
    "no base": (tree(base=None), ["base", "config file"]),
    "base not there": (tree(base="gone.yaml"), ["base is 'gone.yaml'"]),
    "seeds": (tree(seeds=0), ["seeds is 0"]),
    "seeds of another kind": (tree(seeds=True), ["seeds is True"]),
    "no time": (tree(seconds_per_run=0), ["seconds_per_run is 0", "above 0"]),
    "time of another kind": (tree(seconds_per_run="1 h"), ["seconds_per_run is '1 h'"]),
    "measure": (tree(measure=["swap"]), ["measure[0] is 'swap'", "companion_swap"]),
    "nothing to measure": (tree(measure=[]), ["measure is empty"]),
    "arm without name": (arms({"options": {}}), ["arms[1]: name is missing"]),
    "arm's key": (arms({"name": "b", "option": {}}), ["'option'", "did you mean options?"]),
    "arm's kind": (arms({"name": "b", "options": [1]}), ["arms[1]: options is [1]", "mapping"]),
    "same name": (arms({"name": "Worker!"}), ["arms[1]: name is 'Worker!'", "'worker'"]),
    "no letter": (arms({"name": "!"}), ["arms[1]: name is '!'"]),
    "seeds that are a seed": (tree(seeds=20260101), ["seeds is 20260101", "from 1 to 1000"]),
    "no workers": (tree(workers=0), ["workers is 0"]),
    "option of a measure": (
        tree(measure={"domain_shift": {"severity": [3]}}),
        ["measure: domain_shift: the key is 'severity'", "did you mean severities?"],
    ),
    "measure of another model": (
        tree(measure=["classification_error"]),
        ["arm 'worker'", "measure: classification_error", "META_ARCHITECTURE"],
    ),
    "axis of another kind": (tree(grid={"a": [1]}), ["grid: a is [1]", "mapping"]),
    "option of a grid": (
        tree(grid={"a": {"x": {"MODEL": {"DEVICE": "cpu"}}}}),
        ["grid: a: x: options: MODEL is a mapping"],
    ),
    "start without iteration": (
        arms({"name": "b", "starts_from": {"arm": "worker"}}),
        ["arms[1]: starts_from: iteration is missing"],
    ),
    "start from none": (
        arms({"name": "b", "starts_from": {"arm": "x", "iteration": 5}}),
        ["arm 'b': starts_from is 'x'"],
    ),
    "two parents": (
        arms(
            {
                "name": "b",
                "inference_of": "worker",
                "starts_from": {"arm": "worker", "iteration": 5},
            }
        ),
        ["arm 'b': starts_from", "inference_of is 'worker'"],
    ),
    "column of the table": (tree(columns=["AP"]), ["columns[0] is 'AP'", "box AP"]),
    "column of a claim": (
        tree(verdicts=[{"claim": "c", "higher": {"arm": "worker", "column": "AP"}, "lower": {}}]),
        ["verdicts[0]: higher: column is 'AP'"],
    ),
    "arm of a claim": (
        tree(verdicts=[{"claim": "c", "higher": {"arm": "x", "column": "swap"}, "lower": {}}]),
        ["verdicts[0]: higher: arm is 'x'"],
    ),
    "axis of a figure": (
        tree(figures=[{"name": "f", "caption": "c", "series": ["swap"], "over": "size"}]),
        ["figures[0]: over is 'size'", "the axes of the grid"],
    ),
    "inference of none": (
        arms({"name": "b", "inference_of": "wroker"}),
        ["arm 'b': inference_of is 'wroker'", "did you mean worker?"],
    ),
    "inference of inference": (
        arms({"name": "b", "inference_of": "worker"}, {"name": "c", "inference_of": "b"}),
        ["arm 'c': inference_of is 'b'", "trained: worker"],
    ),
    "key of the run": (tree(options={"SEED": 1}), ["options: SEED is 1"]),
    "arm's key of the run": (
        arms({"name": "b", "options": {"OUTPUT_DIR": "x"}}),
        ["arm 'b'", "OUTPUT_DIR is 'x'"],
    ),
    "nested options": (
        arms({"name": "b", "options": {"MODEL": {"ROI_BN": {"BATCH": "global"}}}}),
        ["arm 'b': options: MODEL is a mapping; write MODEL.ROI_BN.BATCH: global"],
    ),
    "nested options of all arms": (
        tree(options={"MODEL.ROI_BN": {"BATCH": "global"}}),
        [": options: MODEL.ROI_BN is a mapping; write MODEL.ROI_BN.BATCH: global"],
    ),
    "nested options without any": (tree(options={"MODEL": {}}), ["write MODEL.KEY: value"]),
    "config key": (
        arms({"name": "b", "options": {"MODEL.ROI_BN.BACH": "worker"}}),
        ["arm 'b'", "MODEL.ROI_BN.BACH: 'worker'", "did you mean MODEL.ROI_BN.BATCH?"],
    ),
    "config key of all arms": (
        tree(options={"SOLVER.STEP": 1}),
        ["SOLVER.STEP: 1", "SOLVER.STEPS"],
    ),
    "config value": (
        arms({"name": "b", "options": {"SOLVER.MAX_ITER": "many"}}),
        ["arm 'b'", "SOLVER.MAX_ITER", "'many'"],
    ),
    "setting": (
        arms({"name": "b", "options": {"MODEL.ROI_BN.BATCH": "gpu"}}),
        ["arm 'b'", "'gpu'", "shuffled"],
    ),
    "dataset": (tree(datasets={"coco": {}}), ["datasets: dataset coco: kind", "leaky_shapes"]),
    "dataset's option": (
        tree(datasets={"leaky_shapes": {"corelation": 1}}),
        ["leaky_shapes", "corelation: 1", "did you mean correlation?"],
    ),
    "dataset's value": (
        tree(datasets={"leaky_shapes": {"correlation": 7}}),
        ["datasets: dataset leaky_shapes: correlation", "7"],
    ),
    "modules to freeze": (
        tree(
            options={"MODEL.ROI_BN.FREEZE_ITER": 5, "MODEL.ROI_BN.FREEZE_MODULES": ["roi_head"]},
            measure=["companion_swap"],
        ),
        ["arm 'worker'", "MODEL.ROI_BN.FREEZE_MODULES", "'roi_head' matches no BatchNorm layer"],
    ),
    "modules of PreciseBN": (
        tree(options={"TEST.PRECISE_BN.MODULES": ["roi_head"]}),
        ["arm 'worker'", "TEST.PRECISE_BN.MODULES", "'roi_head' matches no BatchNorm layer"],
    ),
    "import": (tree(imports=["no_such"]), ["imports: no_such", "PYTHONPATH"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_before_anything_is_written(mistake, tmp_path, capsys):
    content, words = MISTAKES[mistake]
    path = write(tmp_path, content)
    output = tmp_path / "out"
    assert main(["--study", path, "--output", str(output), "--dry-run"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and path in printed
    for word in words:
        assert word in printed
    assert not output.exists()


@pytest.mark.parametrize(("seconds", "left"), [(90, "02:15 (seconds_per_run"), (None, "unknown")])
def test_the_first_estimate_is_the_files(tmp_path, capsys, seconds, left):
    path = write(tmp_path, tree(seconds_per_run=seconds))
    flags = ["--output", str(tmp_path / "out"), "--seeds", "3", "--jobs", "2", "--dry-run"]
    assert main(["--study", path, *flags]) == 0
    assert f"3 runs, 2 at once; time left: {left}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--jobs", "0"], ["--jobs is 0"]),
        (["--seeds", "-1"], ["--seeds is -1"]),
        (["--seeds", "20260101"], ["--seeds is 20260101", "from 1 to 1000"]),
        (["--num-gpus", "0"], ["--num-gpus is 0"]),
        (["--options", "SOLVER.MAX_ITER"], ["--options: 'SOLVER.MAX_ITER' is left over"]),
        (["--weights", "x.pth"], ["--weights x.pth", "trains its arms"]),
        (["--config-file", "gone.yaml"], ["gone.yaml"]),
    ],
)
def test_a_mistake_on_the_command_line(flags, words, tmp_path, capsys):
    assert main(["--study", write(tmp_path, tree()), "--dry-run", *flags]) == 2
    printed = capsys.readouterr().err
    for word in words:
        assert word in printed


def test_a_study_without_training_needs_config_and_checkpoint(tmp_path, capsys):
    path = write(tmp_path, tree(train=False, base=None))
    assert main(["--study", path]) == 2
    assert "--config-file" in capsys.readouterr().err
    config = ["--config-file", tree()["base"]]
    assert main(["--study", path, *config]) == 2
    assert "--weights" in capsys.readouterr().err
    assert main(["--study", path, *config, "--weights", "gone.pth"]) == 2
    assert "gone.pth: no such file" in capsys.readouterr().err


def test_options_of_the_study_the_checkpoint_and_the_arm_add_up():
    study = Study(
        file="x",
        name="x",
        options={"A": 0, "B": 0, "C": 0},
        arms=(Arm("one", {"B": 1, "C": 1}), Arm("two", {"C": 2}, inference_of="one")),
    )
    assert study.options_of(study.arms[0]) == {"A": 0, "B": 1, "C": 1}
    assert study.options_of(study.arms[1]) == {"A": 0, "B": 1, "C": 2}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_study_is_valid(path):
    study = read_study(path)
    if study.train:
        for arm in {arm.template: arm for arm in study.arms}.values():
            arm_config(study, arm, here=False)
    assert json.dumps(dataclasses.asdict(study))
    assert set(study.measure) <= set(MEASURES) and study.question


def test_table6_is_what_its_configs_say():
    """The arms are deltas over one of the nine configs, and must resolve to each of them."""
    study = read_study(STUDIES / "table6.yaml")
    rows = ("bn_1image", "bn_1image_minibatch", "bn_2images", "bn_2images_minibatch")
    rows += ("shuffled_1image", "shuffled_2images", "global", "nonorm", "gn")
    assert len(study.arms) == len(rows)
    for arm, row in zip(study.arms, rows, strict=True):
        ours = arm_config(study, arm, here=False).clone()
        file = f"mask_rcnn_R_50_FPN_3x_{row}.yaml"
        base = str(REPOSITORY / "configs/COCO-InstanceSegmentation" / file)
        alone = Study(file=file, name=row, base=base, arms=(Arm(row),), workers=8)
        theirs = arm_config(alone, alone.arms[0], here=False)
        ours.defrost()
        ours.OUTPUT_DIR = theirs.OUTPUT_DIR
        if row in ("nonorm", "gn"):  # nothing to group
            ours.MODEL.ROI_BN.BATCH = theirs.MODEL.ROI_BN.BATCH
        assert ours.dump() == theirs.dump(), row


def test_a_grid_multiplies_arms_and_claims_out(tmp_path):
    grid = {"size": {2: {"A": 2}, 4: {"A": 4}}, "net": {"x": {"B": 1}, "y": {"B": 2}}}
    arms = [
        {"name": "{net}, {size}"},
        {
            "name": "{net}, {size}, late",
            "starts_from": {"arm": "{net}, {size}", "iteration": 3},
            "options": {"B": 7},
            "measure": ["evaluation"],
        },
    ]
    side = {"arm": "{net}, 2", "column": "box AP"}
    claims = [{"claim": "{net} grows", "higher": side, "lower": {**side, "arm": "{net}, 4"}}]
    content = tree(grid=grid, arms=arms, verdicts=claims, measure=["companion_swap", "evaluation"])
    study = read_study(write(tmp_path, content))
    assert [arm.name for arm in study.arms[:4]] == ["x, 2", "x, 4", "y, 2", "y, 4"]
    late = study.arms[-1]
    assert late.name == "y, 4, late" and late.starts_from.arm == "y, 4"
    assert late.at == {"net": "y", "size": "4"} and late.template == "{net}, {size}, late"
    assert study.options_of(late) == {"A": 4, "B": 7}
    assert list(study.measures_of(late)) == ["evaluation", "training_loss"]
    assert [claim.claim for claim in study.verdicts] == ["x grows", "y grows"]
    assert study.verdicts[1].lower.arm == "y, 4"


def test_names_in_other_scripts_have_a_folder():
    assert Arm("对照").slug == "对照" and Arm("Ω 2").slug == "ω_2"


def test_a_study_is_started_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--study", write(tmp_path, tree()), "--dry-run"]) == 2
    assert "WORLD_SIZE is 2" in capsys.readouterr().err
