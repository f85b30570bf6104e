"""Every config of an image classifier really trains and evaluates, tiny."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bn_detect.data import prepare_dataset, register_dataset
from tests.configs.test_configs import CONFIGS, FILES, load
from tests.configs.test_train import PROGRAM
from tests.data.image_folders import make_image_folders

CLASSIFIERS = [path for path in FILES if path.parts[0] in ("ImageNet", "digits")]


def tiny(path: Path, output: Path) -> list[str]:
    cfg = load(path)
    name = path.parts[0].lower()
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.ROI_BN.IMAGES_PER_GROUP": min(cfg.MODEL.ROI_BN.IMAGES_PER_GROUP, 4),
        "MODEL.ROI_BN.VIRTUAL_WORKERS": min(cfg.MODEL.ROI_BN.VIRTUAL_WORKERS, 4),
        "MODEL.ROI_BN.FREEZE_ITER": min(cfg.MODEL.ROI_BN.FREEZE_ITER, 1),
        "DATASETS.TEST": f"('{name}_val@8',)",
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.MAX_ITER": 2,
        "TEST.PRECISE_BN.NUM_ITER": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "OUTPUT_DIR": output,
        "SEED": 1,
    }
    if name == "imagenet":
        keys |= {"INPUT.CROP.SIZE": "[32, 32]", "INPUT.MIN_SIZE_TEST": 36}
        keys |= {"MODEL.CLASSIFIER.NUM_CLASSES": 3}
    options = [str(text) for item in keys.items() for text in item]
    return ["--config-file", str(CONFIGS / path), *options]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train all of them in one process; the folders by config."""
    root = tmp_path_factory.mktemp("classifiers")
    make_image_folders(root / "imagenet")
    prepare_dataset("digits", root=root)
    register_dataset("digits")
    outputs = {path: root / "out" / path.with_suffix("") for path in CLASSIFIERS}
    jobs = root / "jobs.json"
    jobs.write_text(json.dumps([tiny(path, output) for path, output in outputs.items()]))
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(jobs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    yield outputs
    shutil.rmtree(root)


@pytest.mark.parametrize("path", CLASSIFIERS, ids=str)
def test_trains_and_evaluates(trained, path):
    folder = trained[path]
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = [record["total_loss"] for record in records if "total_loss" in record]
    assert losses and all(math.isfinite(loss) for loss in losses)
    results = json.loads((folder / "results.json").read_text())["classification"]
    assert 0 <= results["top5_error"] <= results["top1_error"] <= 100

    saved = torch.load(folder / "model_final.pth", weights_only=False)
    assert saved["iteration"] == 1
    variances = [v for k, v in saved["model"].items() if k.endswith("running_var")]
    assert variances and all(v.isfinite().all() and (v != 1).any() for v in variances)
