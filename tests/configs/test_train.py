"""Every config really trains, tiny, on a generated folder in COCO's layout."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.configs.test_configs import CONFIGS, FILES, load
from tests.helpers.coco_folder import make_coco_folder

COCO = [path for path in FILES if path.parts[0].startswith("COCO")]
NEON = [path for path in FILES if path.parts[0] == "neon" and not path.name.startswith("Base")]
CASES = [(path, 1) for path in [*COCO, *NEON]]
ON_TWO = ("neon/faster", "shuffled_1image", "retinanet_lean_FPN_level_shared")
CASES += [(path, 2) for path in [*COCO, *NEON] if any(part in str(path) for part in ON_TWO)]
ROW2, ROW3 = (
    Path(f"COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x_bn_2images{name}.yaml")
    for name in ("", "_minibatch")
)
PROGRAM = """
import json, sys
from bn_detect.commands.train import main
for arguments in json.load(open(sys.argv[1])):
    assert main(arguments) == 0, arguments
"""


def tiny(path: Path, output: Path, workers: int, iterations: int) -> list[str]:
    images = 2 * workers
    neon = path.parts[0] == "neon"
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.ROI_BN.VIRTUAL_WORKERS": min(2, load(path).MODEL.ROI_BN.VIRTUAL_WORKERS),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32 if neon else 64,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 64 if neon else 16,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": "(32, 32)",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.RETINANET.NUM_CLASSES": 80,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MAX_SIZE_TRAIN": 96,
        "SOLVER.IMS_PER_BATCH": images,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": "()",
        "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.TEST": "()",
        "OUTPUT_DIR": output,
        "SEED": 1,
    }
    if neon:
        keys |= {"DATASETS.TRAIN": "('coco_2017_train',)", "MODEL.ROI_HEADS.NUM_CLASSES": 80}
    else:
        # A ResNet-50 of random weights without norm makes features of 1e3 from pixels up to 255;
        # with some seeds the RPN then diverges within two iterations.
        keys["MODEL.PIXEL_STD"] = "[200.0, 200.0, 200.0]"
    options = [str(text) for item in keys.items() for text in item]
    return ["--config-file", str(CONFIGS / path), "--num-gpus", str(workers), *options]


def evaluate(path: Path, output: Path, checkpoint: Path) -> list[str]:
    """Evaluate `checkpoint` under the config; all detections count, for it has hardly learnt."""
    keys = {
        "MODEL.WEIGHTS": checkpoint,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.MAX_SIZE_TEST": 96,
        "TEST.DETECTIONS_PER_IMAGE": 20,
        "DATASETS.TEST": "('coco_2017_val',)",
    }
    options = [str(text) for item in keys.items() for text in item]
    return ["--eval-only", *tiny(path, output, workers=1, iterations=2), *options]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train all of them in one process (and three with two workers), then evaluate row 2's
    checkpoint as rows 2 and 3; the folders by config and workers, or 0 for an evaluation."""
    root = tmp_path_factory.mktemp("coco")
    make_coco_folder(root, num_images=4, size=(96, 64))
    outputs = {(path, n): root / f"out{n}" / path.with_suffix("") for path, n in CASES}
    runs = [
        tiny(path, output, workers, iterations=3 if path in NEON else 2)
        for (path, workers), output in outputs.items()
    ]
    for path in (ROW2, ROW3):
        outputs[path, 0] = root / "evaluated" / path.with_suffix("")
        runs.append(evaluate(path, outputs[path, 0], outputs[ROW2, 1] / "model_final.pth"))
    jobs = root / "jobs.json"
    jobs.write_text(json.dumps(runs))
    environment = os.environ | {"DETECTRON2_DATASETS": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(jobs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    yield outputs
    shutil.rmtree(root)  # 250 MB of checkpoints


@pytest.mark.parametrize(("path", "workers"), CASES, ids=str)
def test_trains(trained, path, workers):
    folder = trained[path, workers]
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = {k: v for record in records for k, v in record.items() if "loss" in k}
    retinanet = "retinanet" in path.name
    assert {"total_loss", "loss_cls" if retinanet else "loss_rpn_cls"} <= losses.keys()
    assert ("loss_mask" in losses) == ("mask_rcnn" in path.name)
    assert ("loss_keypoint" in losses) == ("keypoint_rcnn" in path.name)
    assert all(math.isfinite(loss) for loss in losses.values()), losses

    saved = torch.load(folder / "model_final.pth", weights_only=False)
    assert saved["iteration"] == (2 if path in NEON else 1)
    heads = {k: v for k, v in saved["model"].items() if k.startswith(("roi_heads", "head"))}
    means = [v for k, v in heads.items() if k.endswith("running_mean")]
    variances = [v for k, v in heads.items() if k.endswith("running_var")]
    has_bn = not path.stem.endswith(("_nonorm", "_gn"))
    assert bool(means) == has_bn and len(means) == len(variances)
    for mean, variance in zip(means, variances, strict=True):
        assert mean.isfinite().all() and mean.abs().sum() > 0
        assert variance.isfinite().all() and (variance >= 0).all() and (variance != 1).any()


def test_row_3_evaluates_the_checkpoint_of_row_2(trained):
    scores = []
    for path in (ROW2, ROW3):
        results = json.loads((trained[path, 0] / "results.json").read_text())
        assert {"bbox", "segm"} <= results.keys()
        found = trained[path, 0] / "inference/coco_2017_val/coco_instances_results.json"
        scores.append([detection["score"] for detection in json.loads(found.read_text())])
    population, minibatch = scores
    assert population and minibatch and population != minibatch
