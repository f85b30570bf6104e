"""`bn-detect probe`: torchvision checkpoints with a COCO folder, and Detectron2 configs."""

import functools
import json

import pytest
import torch
from torchvision import models

from bn_detect.commands import probe
from bn_detect.commands.probe import main
from bn_detect.layers import NormalizationBatch
from bn_detect.probes.adapters.torchvision_files import CocoFolder

from ..helpers.coco_folder import make_coco_folder
from ..helpers.in_process import config, trained
from ..probes import toy
from ..probes.torchvision_models import TORCHVISION, torchvision_detector

SMALL = {"box_batch_size_per_image": 12, "rpn_post_nms_top_n_train": 20, "max_size": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("probe")
    return make_coco_folder(root, num_images=6, num_categories=2, keypoints=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    state = {f"module.{key}": value for key, value in torchvision_detector().state_dict().items()}
    torch.save({"model": state, "epoch": 3}, path)
    return path


@pytest.fixture
def of_torchvision(folder, weights, monkeypatch):
    """The options of a probe of torchvision's detector, with few RoIs."""
    small = functools.partial(models.get_model, **SMALL)
    monkeypatch.setattr(models, "get_model", small)
    words = f"--torchvision {TORCHVISION[0]} --weights {weights} --coco-folder {folder}"
    return [*words.split(), "--annotations", "annotations/instances_val2017.json"]


def test_torchvision(of_torchvision, tmp_path, capsys):
    words = [*of_torchvision, "--min-size", "64", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "out/probe.json").read_text())
    report = kept["companion_swap"]
    assert f"The head {report['verdict']}" in printed
    assert (report["images"], report["rois"], kept["images_per_batch"]) == (6, 24, 2)
    assert kept["normalization_batch"]["batch"] == "worker"
    assert report["classes"] == ["background", "person", "bicycle"]
    page = (tmp_path / "out/probe.md").read_text()
    for part in ("label leakage", "image dependence", "6 images", "(swap.png)"):
        assert part in page
    assert (tmp_path / "out/swap.png").stat().st_size > 1000
    assert all(flip["file_name"].startswith(str(tmp_path.parents[1])) for flip in report["flips"])


def test_the_probe_is_repeated_to_the_bit(of_torchvision, tmp_path, capsys):
    reports = []
    for number in range(2):
        words = [*of_torchvision, "--min-size", "64", "--batch", "global", "--num-images", "4"]
        assert main([*words, "--output", str(tmp_path / str(number))]) == 0
        reports.append(json.loads((tmp_path / f"{number}/probe.json").read_text()))
    assert reports[0]["companion_swap"] == reports[1]["companion_swap"]
    assert reports[0]["normalization_batch"]["batch"] == "global"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--torchvision", "fasterrcnn_resnet50_v2"], "did you mean fasterrcnn_resnet50_fpn_v2?"),
        (["--num-classes", "91"], "--num-classes is 91"),
        (["--annotations", "none.json"], "--annotations none.json: no such file"),
        (["--annotations", "annotations/../train2017"], "no such file"),
        (["--coco-folder", "nowhere"], "--coco-folder nowhere: no such folder"),
        (["--weights", "none.pth"], "--weights none.pth: no such file"),
        (["--num-images", "2"], "gives 1 batches of 2 images"),
        (["--num-gpus", "8"], "two batches of 16 images"),
        (["--num-gpus", "0"], "--num-gpus is 0"),
        (["--dataset", "coco_2017_val"], "--dataset is for --config-file only"),
        (["--torchvision", "maskrcnn_resnet50_fpn_v2"], "it lacks roi_heads.mask_head"),
    ],
)
def test_mistakes(options, said, of_torchvision, tmp_path, capsys):
    assert main([*of_torchvision, "--output", str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "probe.json").exists()


def test_several_annotation_files_are_named(of_torchvision, tmp_path, capsys):
    words = of_torchvision[:-2]
    assert main([*words, "--output", str(tmp_path)]) == 2
    assert "annotations/instances_train2017.json" in capsys.readouterr().err


def test_labels_of_a_folder_with_other_ids(folder, tmp_path):
    content = json.loads((folder / "annotations/instances_val2017.json").read_text())
    content["categories"] = [
        {"id": 0, "name": "vehicle", "supercategory": "none"},  # Roboflow's first only groups
        {"id": 17, "name": "car", "supercategory": "vehicle"},
        {"id": 40, "name": "bus", "supercategory": "vehicle"},
    ]
    for each in content["annotations"]:
        each["category_id"] = {1: 40, 2: 17}[each["category_id"]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(folder / "val2017")
    loader = CocoFolder(tmp_path, num_classes=3, images_per_batch=2)
    assert loader.classes == ["background", "car", "bus"]
    labels = torch.cat([t["labels"] for _, targets in loader for t in targets])
    number = [each["category_id"] for each in content["annotations"]].count(40)
    assert (labels == 2).sum() == number
    with pytest.raises(ValueError, match="2 categories with ids \\[17, 40\\].* 6 classes beside"):
        CocoFolder(tmp_path, num_classes=7, images_per_batch=2)


NUMBERS = "(not measured: the number of foreground RoIs)"  # all images have as many objects


@pytest.mark.parametrize("kind", ["label", "none"])
def test_a_planted_leak_is_told(kind, tmp_path, capsys):
    """A head that was trained where companions tell the class reads them; one else does not."""
    leaky = kind == "label"
    dials = {"correlation": float(leaky), "own_evidence": 0.5}
    model = toy.train(toy.detector(batch="images"), 200, **dials)
    batches = toy.batches(10, 8, 77, **dials)
    of = (model, batches, len(batches), 8, NormalizationBatch("images"), "toy", [])
    args = probe.argument_parser().parse_args(["--config-file", "x", "--weights", "y"])
    args.output = tmp_path
    probe.work(probe.Subject("toy.yaml", *of), args, "bn-detect probe")
    report = json.loads((tmp_path / "probe.json").read_text())["companion_swap"]
    found, printed = report["label_leakage"]["all"], capsys.readouterr().out
    interval = f"{found['mean']:+.4f} nats [{found['low']:.4f}, {found['high']:.4f}]"
    assert (
        (f"The head reads labels {NUMBERS}: {interval}." in printed) == leaky == (found["low"] > 0)
    )
    assert "foreground dependence | not measured" in printed and NUMBERS in printed


def test_a_config_of_detectron2(datasets, tmp_path, capsys):
    cfg = config(datasets, tmp_path, SOLVER__MAX_ITER=1, DATASETS__TEST="('in_process_val',)")
    trained(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    words = f"--config-file {tmp_path}/config.yaml --weights {tmp_path}/model_final.pth"
    assert main([*words.split(), "--output", str(tmp_path / "out"), "--num-gpus", "2"]) == 0
    kept = json.loads((tmp_path / "out/probe.json").read_text())
    assert kept["dataset"] == "in_process_val"
    assert kept["normalization_batch"]["virtual_workers"] == 2
    batch = cfg.MODEL.ROI_BN.BATCH
    assert f"normalization batch: {batch}, 2 workers" in capsys.readouterr().out

    for more, said in (
        (["--dataset", "nothing"], "nothing"),
        (["MODEL.ROI_BN.BATCH", "half"], "MODEL.ROI_BN.BATCH"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "90"], "roi_heads.box_predictor"),
    ):
        assert main([*words.split(), "--output", str(tmp_path / "out"), *more]) == 2
        assert said in capsys.readouterr().err
