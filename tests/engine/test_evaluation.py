"""One checkpoint under several statistics, parts of datasets, and statistics over training."""

import json
import re

import pytest
import torch

from bn_detect.commands.train import main, parse_arguments


@pytest.mark.parametrize("kinds", ["population precise", "population,precise"])
@pytest.mark.parametrize("options", ["SEED 3", "MODEL.WEIGHTS w.pth"])
def test_eval_stats_do_not_take_the_options(kinds, options):
    for words in (f"--eval-only --eval-stats {kinds}", f"--eval-stats {kinds} --eval-only"):
        args = parse_arguments(["--config-file", "a.yaml", *words.split(), *options.split()])
        assert args.eval_only and args.eval_stats == ["population", "precise"]
        assert args.opts == options.split()


@pytest.mark.parametrize("kinds", [["mean"], ["Population"], ["precise", "mini-batch"], []])
def test_unknown_eval_stats(kinds, capsys):
    config = "configs/neon/faster_rcnn_lean_FPN_worker.yaml"
    code = main(
        ["--config-file", config, "--eval-only", "--eval-stats", *kinds, "DATASETS.TEST", "()"]
    )
    assert code == 2
    assert "must be of population, minibatch, precise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kinds", "norm", "message"),
    [
        ("population minibatch", "GN", "is 'minibatch', .* it must be of population\n"),
        ("precise", "GN", "is 'precise', .* it must be of population\n"),
        ("minibatch", "SyncBN", "is 'minibatch', .* it must be of population, precise\n"),
    ],
)
def test_eval_stats_that_mean_nothing_for_the_model(kinds, norm, message, capsys, monkeypatch):
    monkeypatch.setattr("bn_detect.commands.train.launch", None)  # nothing may start
    words = f"--config-file configs/neon/Base-RCNN-lean-FPN.yaml --eval-only --eval-stats {kinds}"
    options = f"MODEL.ROI_BOX_HEAD.NORM {norm} DATASETS.TRAIN () DATASETS.TEST ()"
    assert main(f"{words} {options}".split()) == 2
    assert re.search(message, capsys.readouterr().err)


def test_eval_stats_do_not_train(capsys, monkeypatch):
    monkeypatch.setattr("bn_detect.commands.train.launch", None)  # nothing may start
    config = "configs/neon/faster_rcnn_lean_FPN_worker.yaml"
    assert main(["--config-file", config, "--eval-stats", "precise", "DATASETS.TEST", "()"]) == 2
    assert "--eval-stats precise needs --eval-only" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(train_net, tmp_path_factory):
    """A run that logs statistics; 6 images, so 2 of them are a third."""
    folder = tmp_path_factory.mktemp("trained")
    keys = {"MODEL__ROI_BN__LOG_STATS": 2, "TEST__PRECISE_BN__NUM_ITER": 2}
    train_net.run(train_net.arguments(folder, batch="worker", **keys))
    return folder


def test_statistics_over_training_are_recorded(trained):
    records = json.loads((trained / "bn_statistics.json").read_text())
    assert len(records) == 2  # conv layers of the box head
    weights = torch.load(trained / "model_final.pth", weights_only=False)["model"]
    for name, rows in records.items():
        assert [row[0] for row in rows] == [1, 3]
        assert all(isinstance(value, float) for row in rows for value in row[1:])
        assert rows[-1][2] == weights[f"{name}.running_mean"][0].item()  # put back after the pass
        assert len(set(rows[-1][1:])) == 3
    assert (trained / "bn_statistics.png").read_bytes().startswith(b"\x89PNG")
    metrics = (trained / "metrics.json").read_text()
    assert "bn_mean/roi_heads.box_head.conv1.norm/precise" in metrics


def test_one_table_for_several_statistics_and_datasets(train_net, trained, tmp_path):
    keys = {
        "MODEL__WEIGHTS": trained / "model_final.pth",
        "DATASETS__TEST": "('coco_2017_val', 'coco_2017_train@2')",
        "TEST__PRECISE_BN__NUM_ITER": 2,
        "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
    }
    kinds = ("population", "minibatch", "precise")
    flags = ("--num-gpus", 2, "--eval-only", "--eval-stats", *kinds)
    printed = train_net.run(train_net.arguments(tmp_path, *flags, batch="worker", **keys))
    table = [line.split() for line in printed.splitlines() if line.startswith("coco_2017")]
    assert [row[:2] for row in table] == [
        [name, kind] for name in ("coco_2017_train@2", "coco_2017_val") for kind in kinds
    ]
    assert all(len(row) == 4 and float(row[2]) >= 0 for row in table)

    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == list(kinds)

    def scores(kind: str, name: str) -> list[float]:
        file = tmp_path / f"inference_{kind}" / name / "coco_instances_results.json"
        found = json.loads(file.read_text())
        assert len({d["image_id"] for d in found}) == (2 if "@" in name else 6)
        return [d["score"] for d in found]

    for name in ("coco_2017_val", "coco_2017_train@2"):
        assert scores("population", name) != scores("minibatch", name)
        assert scores("population", name) != scores("precise", name)


def test_minibatch_statistics_of_chunks_of_images(train_net, trained, tmp_path):
    def scores(images: int) -> list[tuple]:
        folder = tmp_path / str(images)
        keys = {
            "MODEL__WEIGHTS": trained / "model_final.pth",
            "DATASETS__TEST": "('coco_2017_val',)",
            "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
            "MODEL__ROI_BN__TEST_IMAGES_PER_GROUP": images,
        }
        flags = ("--eval-only", "--eval-stats", "population", "minibatch")
        train_net.run(train_net.arguments(folder, *flags, batch="worker", **keys))
        return [
            [d["score"] for d in json.loads(file.read_text()) if d["image_id"] == image]
            for kind in ("population", "minibatch")
            for file in [folder / f"inference_{kind}/coco_2017_val/coco_instances_results.json"]
            for image in sorted({d["image_id"] for d in json.loads(file.read_text())})
        ]

    one, four = scores(1), scores(4)  # of 6 images: groups of 4 and 2
    assert len(one) == len(four) == 12
    assert one[:6] == four[:6]  # population: the chunk says nothing
    assert all(a != b for a, b in zip(one[6:], four[6:], strict=True))
