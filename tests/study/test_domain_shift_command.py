"""bn-detect domain-shift on a tiny detector, by the real command."""

import json
import re

import pytest
import torch
from detectron2.modeling import build_model

from bn_detect.commands import domain_shift as command
from bn_detect.configuration.reading import read_config
from bn_detect.runtime.checkpointer import AtomicCheckpointer
from tests.helpers.schema import misfits
from tests.helpers.train_net import REPOSITORY, TINY


@pytest.fixture
def arguments(datasets, tmp_path):
    """Of the command: a config file and a checkpoint of random weights; 6 images a split."""
    keys = {**TINY, "DATASETS.TEST": "('coco_2017_val',)", "SOLVER.IMS_PER_BATCH": "2"}
    keys |= {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0", "TEST.DETECTIONS_PER_IMAGE": "5"}
    keys |= {"MODEL.DEVICE": "cpu", "SEED": "1"}
    words = command.parse_arguments(
        [
            *("--config-file", str(REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml")),
            *("--weights", "W"),
            *(word for item in keys.items() for word in map(str, item)),
        ]
    )
    cfg = read_config(words)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    AtomicCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    files = ["--config-file", f"{tmp_path}/config.yaml", "--weights", f"{tmp_path}/model.pth"]
    return [*files, "--output", str(tmp_path / "out")]


def test_parsing():
    words = "--config-file FILE --weights W --num-images 5 6 --corruptions fog snow SEED 3 A.B ()"
    args = command.parse_arguments(words.split())
    assert args.config_file == "FILE" and args.num_images == [5, 6]
    assert args.corruptions == ["fog", "snow"] and args.opts == ["SEED", "3", "A.B", "()"]


def test_a_run_that_goes_on(arguments, tmp_path, capsys):
    """A second run measures what is missing: a number that was kept is not measured again."""
    flags = ["--corruptions", "contrast", "contrast", "--severity", "5", "--num-images"]
    assert command.main([*arguments, *flags, "4"]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    for name in ("results.json", "domain_shift.md", "domain_shift.png"):
        assert (out / name).stat().st_size > 0
    assert (out / "domain_shift.md").read_text().strip() in printed
    assert "over 1 corruptions" in printed  # named twice, it counts once
    assert misfits(json.loads((out / "results.json").read_text())) == []
    path = out / "runs/the_checkpoint/seed_1/measurements.json"
    content = json.loads(path.read_text())
    cells = {k: v for k, v in content["measures"]["domain_shift"].items() if " under " in k}
    assert len(cells) == 6 and all("AP" in cell["bbox"] for cell in cells.values())
    content["measures"]["domain_shift"]["clean under checkpoint"]["bbox"]["AP"] = 77.7
    path.write_text(json.dumps(content))

    assert command.main([*arguments, *flags, "2", "4"]) == 0
    after = json.loads(path.read_text())["measures"]["domain_shift"]
    assert after["clean under checkpoint"]["bbox"]["AP"] == 77.7
    assert len([key for key in after if " under " in key]) == 8
    assert "77.7" in (out / "domain_shift.md").read_text()
    for flag, said in (
        ("--num-gpus 2", "workers 1, not 2"),
        ("--images-of coco_2017_train", "images_of"),
    ):
        assert command.main([*arguments, *flags, "4", *flag.split()]) == 2
        assert said in capsys.readouterr().err
    weights = tmp_path / "model.pth"
    data = torch.load(weights, weights_only=True)
    data["model"] = {key: value + 0.0 for key, value in data["model"].items()}
    first = next(iter(data["model"]))
    data["model"][first] = data["model"][first] + 1
    torch.save(data, weights)
    assert command.main([*arguments, *flags, "4"]) == 2
    assert "fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--corruptions rain", "corruption is 'rain'; it must be one of"),
        ("--severity 6", "severity of contrast is 6"),
        ("--num-images 7", "7 images .* at least 1, .* at most its 6"),
        ("--num-images 6", "no other is left to evaluate on"),
        ("--num-images 5 SOLVER.IMS_PER_BATCH 4 MODEL.ROI_BN.VIRTUAL_WORKERS 2", "use 4 or 6"),
        ("DATASETS.TEST ()", r"DATASETS.TEST"),
        ("MODEL.ROI_BN.TEST_STATS minibatch", "which uses no population statistics"),
        ("MODEL.ROI_BOX_HEAD.NORM GN", "the model has no BatchNorm layer"),
        ("--weights nothing.pth", "--weights nothing.pth: no such file"),
        ("MODEL.ROI_BOX_HEAD.CONV_DIM 48", "does not fit the config"),
        ("MODEL.NAME x", "MODEL.NAME"),
        ("--num-gpus 0", "--num-gpus is 0"),
    ],
)
def test_mistakes(arguments, capsys, tmp_path, flags, said):
    assert command.main([*arguments, *flags.split()]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
