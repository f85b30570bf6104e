"""tools/domain_shift.py on a tiny detector."""

import json
import re

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from bn_detect.commands import domain_shift as command
from bn_detect.runtime.checkpointer import AtomicCheckpointer
from tests.helpers.in_process import config
from tests.helpers.train_net import datasets  # noqa: F401


@pytest.fixture
def arguments(datasets, tmp_path):  # noqa: F811
    """Of the command: a config file and a checkpoint of random weights; 6 images a split."""
    keys = {
        "DATASETS__TEST": "('in_process_val',)",
        "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
        "TEST__DETECTIONS_PER_IMAGE": 5,
        "SEED": 1,
    }
    cfg = config(datasets, tmp_path, **keys)
    for name in [n for n in DatasetCatalog if "_corrupted_" in n]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    AtomicCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    files = ["--config-file", f"{tmp_path}/config.yaml", "--weights", f"{tmp_path}/model.pth"]
    return [*files, "--output", str(tmp_path / "out")]


def counting(monkeypatch, fail_at: int | None = None) -> list[str]:
    """The datasets that are evaluated from now on; at number `fail_at` it raises."""
    evaluated = []

    def evaluate_on(cfg, model, name, folder):
        if len(evaluated) == fail_at:
            raise KeyboardInterrupt
        evaluated.append(name)
        statistics = torch.cat([b.flatten() for n, b in model.named_buffers() if "running" in n])
        return {"bbox": {"AP": statistics.sum().item()}}

    monkeypatch.setattr(command, "evaluate_on", evaluate_on)
    return evaluated


def test_parsing():
    words = "--config-file FILE --weights W --num-images 5 6 --corruptions fog snow SEED 3 A.B ()"
    args = command.parse_arguments(words.split())
    assert args.config_file == "FILE" and args.num_images == [5, 6]
    assert args.corruptions == ["fog", "snow"] and args.opts == ["SEED", "3", "A.B", "()"]


def test_a_run(arguments, tmp_path, capsys):
    flags = ["--corruptions", "contrast", "--num-images", "2", "6", "--severity", "5"]
    assert command.main([*arguments, *flags]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    for name in ("domain_shift.json", "domain_shift.md", "domain_shift.png"):
        assert (out / name).stat().st_size > 0
    found = json.loads((out / "domain_shift.json").read_text())
    assert len(found["cells"]) == 8 and all("AP" in c["metrics"]["bbox"] for c in found["cells"])
    assert found["settings"]["data"] == found["settings"]["data_of_statistics"] == "in_process_val"
    assert (out / "domain_shift.md").read_text().strip() in printed


def test_statistics_of_other_images(arguments, monkeypatch, tmp_path):
    flags = ["--corruptions", "fog", "--num-images", "2"]
    found = []
    for images_of in ("in_process_val", "in_process_train"):
        counting(monkeypatch)
        out = ["--output", str(tmp_path / images_of), "--images-of", images_of]
        assert command.main([*arguments, *flags, *out]) == 0
        cells = json.loads((tmp_path / images_of / "domain_shift.json").read_text())["cells"]
        found.append({(c["data"], c["statistics"]): c["metrics"]["bbox"]["AP"] for c in cells})
    assert found[0]["fog", "checkpoint"] == found[1]["fog", "checkpoint"]
    assert found[0]["fog", "fog"] != found[1]["fog", "fog"]


def test_what_was_measured_is_not_measured_again(arguments, monkeypatch, tmp_path):
    flags = ["--corruptions", "fog", "--num-images", "6"]
    evaluated = counting(monkeypatch, fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        command.main([*arguments, *flags])
    assert len(evaluated) == 3
    rest = counting(monkeypatch)
    assert command.main([*arguments, *flags]) == 0
    assert len(rest) == 3
    more = counting(monkeypatch)
    assert command.main([*arguments, *flags[:-1], "3", "6"]) == 0
    assert more == ["in_process_val", "in_process_val_corrupted_fog_3"]  # each under its own
    cells = json.loads((tmp_path / "out/domain_shift.json").read_text())["cells"]
    # Other statistics for each: what stands for AP is their sum.
    sums = {(c["statistics"], c["images"]): c["metrics"]["bbox"]["AP"] for c in cells}
    assert len(set(sums.values())) == len(sums) == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--corruptions rain", "corruption is 'rain'; it must be one of"),
        ("--severity 6", "severity of contrast is 6"),
        ("--num-images 7", "--num-images 7: it must be at least 1, .* at most the 6 images"),
        ("DATASETS.TEST ()", r"DATASETS.TEST is \(\); one dataset is needed"),
        ("MODEL.ROI_BN.TEST_STATS minibatch", "which uses no population statistics"),
        ("MODEL.ROI_BOX_HEAD.NORM GN", "the model has no BatchNorm layer"),
        ("--weights nothing.pth", "--weights nothing.pth: no such file"),
        ("MODEL.ROI_BOX_HEAD.CONV_DIM 48", "does not fit --config-file"),
        ("MODEL.NAME x", "MODEL.NAME"),
    ],
)
def test_mistakes(arguments, capsys, tmp_path, flags, said):
    assert command.main([*arguments, *flags.split()]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_results_of_another_checkpoint_are_not_mixed(arguments, monkeypatch, capsys, tmp_path):
    counting(monkeypatch)
    flags = ["--corruptions", "fog", "--num-images", "6"]
    assert command.main([*arguments, *flags]) == 0
    assert command.main([*arguments, *flags, "--severity", "1"]) == 2
    assert "measured with another severity; name another --output" in capsys.readouterr().err
