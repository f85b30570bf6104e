"""Every config really trains, tiny, on a generated folder in COCO's layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.configs.test_configs import CONFIGS, FILES
from tests.helpers.coco_folder import make_coco_folder

COCO = [path for path in FILES if path.parts[0].startswith("COCO")]
NEON = [path for path in FILES if path.parts[0] == "neon" and not path.name.startswith("Base")]
CASES = [(path, 1) for path in [*COCO, *NEON]]
CASES += [(path, 2) for path in [*COCO, *NEON] if path in NEON or "shuffled_1image" in path.name]
PROGRAM = """
import json, sys
from bn_detect.engine.train import main
for arguments in json.load(open(sys.argv[1])):
    assert main(arguments) == 0, arguments
"""


def tiny(path: Path, output: Path, workers: int, iterations: int) -> list[str]:
    images = 2 * workers
    neon = path.parts[0] == "neon"
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32 if neon else 64,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 64 if neon else 16,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": "(32, 32)",
        "MODEL.FPN.OUT_CHANNELS": 32,
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
    }
    if neon:
        keys |= {"DATASETS.TRAIN": "('coco_2017_train',)", "MODEL.ROI_HEADS.NUM_CLASSES": 80}
    options = [str(text) for item in keys.items() for text in item]
    return ["--config-file", str(CONFIGS / path), "--num-gpus", str(workers), *options]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train all of them in one process (and two with two workers); folder by config and workers."""
    root = tmp_path_factory.mktemp("coco")
    make_coco_folder(root, num_images=4, size=(96, 64))
    outputs = {(path, n): root / f"out{n}" / path.with_suffix("") for path, n in CASES}
    jobs = root / "jobs.json"
    runs = [
        tiny(path, output, workers, iterations=3 if path in NEON else 2)
        for (path, workers), output in outputs.items()
    ]
    jobs.write_text(json.dumps(runs))
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(jobs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    return outputs


@pytest.mark.parametrize(("path", "workers"), CASES, ids=str)
def test_trains(trained, path, workers):
    folder = trained[path, workers]
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = [record["total_loss"] for record in records if "total_loss" in record]
    assert losses and all(loss > 0 for loss in losses)
    saved = torch.load(folder / "model_final.pth", weights_only=False)
    assert saved["iteration"] == (2 if path in NEON else 1)
    means = {k: v for k, v in saved["model"].items() if k.endswith("norm.running_mean")}
    heads = {k: v for k, v in means.items() if k.startswith("roi_heads")}
    assert bool(heads) == ("nonorm" not in path.name)
    assert all(mean.abs().sum() > 0 for mean in heads.values())
