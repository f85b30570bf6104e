"""What the user got wrong is said before training starts, in one line."""

import pytest

from bn_detect.commands import domain_shift as domain_shift
from bn_detect.commands import precise_bn as rewrite
from bn_detect.commands.train import main

CONFIG = "configs/neon/faster_rcnn_lean_FPN_shuffled.yaml"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.ROI_BN.BATCH", "gpu"], "MODEL.ROI_BN.BATCH is 'gpu'; it must be one of images"),
        (
            ["MODEL.ROI_BN.VIRTUAL_WORKERS", "3"],
            "VIRTUAL_WORKERS is 3, which does not divide the 2",
        ),
        (
            ["MODEL.ROI_BN.BATCH", "images", "MODEL.ROI_BN.IMAGES_PER_GROUP", "4"],
            "IMAGES_PER_GROUP is 4, but a worker has 2 images",
        ),
        (["MODEL.ROI_BN.BATHC", "global"], "did you mean MODEL.ROI_BN.BATCH?"),
        (["MODEL.ROI_BOX_HEAD.NORM", "GN"], "no RoI head has BatchNorm"),
        (["SEED", "3", "--resume"], "--resume stands after the KEY VALUE pairs; options come"),
        (["SEED", "3", "--num-gpus=2"], "error: --num-gpus stands after the KEY VALUE pairs"),
        (
            ["MODEL.ROI_BOX_HEAD.NORM", "BM"],
            "error: MODEL.ROI_BOX_HEAD.NORM is 'BM', which is not known; it must be '', BN, SyncBN",
        ),
        (
            ["DATALOADER.SAMPLER_TRAIN", "Training"],
            "error: DATALOADER.SAMPLER_TRAIN is 'Training'; it must be one of TrainingSampler, ",
        ),
        (["SOLVER.IMS_PER_BATCH", "3"], "IMS_PER_BATCH is 3; it must be a positive multiple of"),
        (["SOLVER.IMS_PER_BATCH", "many"], "error: SOLVER.IMS_PER_BATCH is 'many': Type mismatch"),
        (["SEED.X", "3"], "error: SEED.X is '3'"),
        (["SEED", "3", "OUTPUT_DIR"], "error: KEY VALUE pairs: 'OUTPUT_DIR' is left over"),
        (["MODEL.ROI_BN.FREEZE_MODULES", "[roi_heads]"], "it must be a list, as \"['roi_heads']\""),
        (
            ["DATASETS.TEST", "a,b"],
            "error: DATASETS.TEST is 'a,b'; it must be a list, as \"['a', 'b']",
        ),
        (["INPUT.MIN_SIZE_TRAIN", "800"], 'it must be a list, as "[800]"'),
        (["DATASETS.TRAIN", "('neon_tree_train',)"], "neon_trees_train"),
        (["MODEL.ROI_HEADS.NAME", "BNStandard"], "registered are"),
        (["MODEL.ROI_BN.FREEZE_ITER", "-7"], "FREEZE_ITER is -7; it must be in [-1, "),
        (["MODEL.ROI_BN.LOG_STATS", "-5"], "LOG_STATS is -5; it must be in [0, "),
        (["TEST.PRECISE_BN.PERIOD", "-7"], "PERIOD is -7; it must be in [0, "),
        (
            ["MODEL.ROI_BN.LOG_STATS", "10", "TEST.PRECISE_BN.NUM_ITER", "0"],
            "TEST.PRECISE_BN.NUM_ITER is 0; it must be at least 1",
        ),
        (["SOLVER.OPTIMIZER", "Adam"], "OPTIMIZER is 'Adam'; it must be one of SGD, ADAMW"),
    ],
)
def test_settings(options, message, capsys, monkeypatch):
    monkeypatch.setattr("bn_detect.commands.train.launch", None)  # nothing may start
    code = main(["--config-file", CONFIG, "--num-gpus", "2", *options])
    printed = capsys.readouterr().err
    assert code == 2
    assert message in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1


NO_HEAD = "modules: 'roi_head' matches no BatchNorm layer; some are in roi_heads.box_head"
FREEZE = "MODEL.ROI_BN.FREEZE_ITER 5 MODEL.ROI_BN.FREEZE_MODULES ['roi_head']"
MODULES = "TEST.PRECISE_BN.MODULES ['roi_head']"
GN = "MODEL.ROI_BN.BATCH worker MODEL.ROI_BOX_HEAD.NORM GN"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (FREEZE, f"MODEL.ROI_BN.FREEZE_MODULES: {NO_HEAD}"),
        (f"{MODULES} TEST.PRECISE_BN.ENABLED True", f"TEST.PRECISE_BN.MODULES: {NO_HEAD}"),
        (f"--eval-only --eval-stats precise {MODULES}", f"TEST.PRECISE_BN.MODULES: {NO_HEAD}"),
        (f"{GN} MODEL.ROI_BN.FREEZE_ITER 5", "the model has no BatchNorm layer"),
        (f"{GN} MODEL.ROI_BN.LOG_STATS 5", "LOG_STATS is 5, but no RoI head has BatchNorm"),
    ],
)
def test_layers_that_are_not_there(words, message, capsys, monkeypatch):
    monkeypatch.setattr("bn_detect.commands.train.launch", None)  # nothing may start
    assert main(["--config-file", CONFIG, *words.split()]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


@pytest.mark.parametrize("words", [f"--eval-only {FREEZE}", MODULES])
def test_modules_of_what_is_off_are_not_looked_for(words, monkeypatch):
    monkeypatch.setattr("bn_detect.commands.train.launch", lambda *_, **__: None)
    datasets = "DATASETS.TRAIN () DATASETS.TEST ()"
    assert main(["--config-file", CONFIG, *words.split(), *datasets.split()]) == 0


def test_weights(tmp_path, capsys, monkeypatch):
    started = []
    monkeypatch.setattr("bn_detect.commands.train.launch", lambda *_, **__: started.append(True))

    def code(weights: object, *flags: str) -> int:
        options = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path)]
        return main(["--config-file", CONFIG, *flags, "MODEL.WEIGHTS", str(weights), *options])

    (tmp_path / "there.pth").touch()
    for fine in ("", "detectron2://a/b.pkl", "catalog://a/b", "https://a.example/b.pth"):
        assert code(fine) == 0
    assert code(tmp_path / "there.pth") == code(f"{tmp_path}/there.pth?a=True") == 0
    assert len(started) == 6
    for flags in ((), ("--eval-only",), ("--resume",)):
        assert code("gone.pth", *flags) == 2
        said = "error: MODEL.WEIGHTS is 'gone.pth', but there is no such file\n"
        assert capsys.readouterr().err == said
    (tmp_path / "last_checkpoint").write_text("there.pth")
    assert code("gone.pth", "--resume") == 0
    assert code("gone.pth") == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [("file", "which is a file"), ("file/run", "{file} is a file")],
)
def test_an_output_dir_that_is_a_file(name, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bn_detect.commands.train.launch", None)  # nothing may start
    (tmp_path / "file").touch()
    output, said = tmp_path / name, said.format(file=tmp_path / "file")
    assert main(["--config-file", CONFIG, "OUTPUT_DIR", str(output)]) == 2
    expected = f"error: OUTPUT_DIR is {str(output)!r}, {said}; it must be a folder\n"
    assert capsys.readouterr().err == expected


def test_train_without_a_config_file(capsys):
    with pytest.raises(SystemExit) as end:
        main(["SOLVER.MAX_ITER", "4"])
    assert end.value.code == 2 and "required: --config-file" in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("command", [main, rewrite.main, domain_shift.main])
def test_too_few_workers(command, number, capsys, tmp_path):
    arguments = ["--config-file", CONFIG, "--num-gpus", str(number)]
    if command is not main:
        (tmp_path / "in.pth").write_bytes(b"not read")
        out = tmp_path / ("out" if command is domain_shift.main else "out.pth")
        arguments += ["--weights", str(tmp_path / "in.pth"), "--output", str(out)]
    assert command(arguments) == 2
    assert f"--num-gpus is {number};" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("MODEL: [", "mine.yaml"),
        ("MODEL:\n  ROI_BN:\n    BATHC: global\n", "did you mean MODEL.ROI_BN.BATCH?"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml"),
        ("SOLVER:\n  BASE_LR: abc\n", "mine.yaml: Type mismatch"),
    ],
)
def test_config_files(text, message, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["--config-file", str(path)]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1


def test_evaluation_asks_nothing_of_the_training_batch(capsys, monkeypatch):
    started = []
    monkeypatch.setattr("bn_detect.commands.train.launch", lambda *_, **__: started.append(True))
    options = ["SOLVER.IMS_PER_BATCH", "3", "DATASETS.TEST", "()", "DATASETS.TRAIN", "()"]
    arguments = ["--config-file", CONFIG, "--num-gpus", "2", "--eval-only"]
    assert main([*arguments, *options]) == 0
    assert main([*arguments, "--eval-stats", "precise", *options]) == 2
    assert "IMS_PER_BATCH is 3" in capsys.readouterr().err
    assert started == [True]


def test_a_config_for_another_world_size_is_scaled_before_it_is_checked(monkeypatch):
    monkeypatch.setattr("bn_detect.commands.train.launch", lambda *_, **__: None)
    options = ["SOLVER.REFERENCE_WORLD_SIZE", "8", "SOLVER.IMS_PER_BATCH", "8"]
    options += ["DATASETS.TEST", "()", "DATASETS.TRAIN", "()"]
    assert main(["--config-file", CONFIG, "--num-gpus", "3", *options]) == 0
