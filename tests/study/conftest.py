"""A tiny study on a tiny dataset, run by the real command."""

import os
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tests.helpers.coco_folder import make_coco_folder
from tests.helpers.train_net import REPOSITORY, TINY

NAMES = ("coco_2017_train", "coco_2017_val")


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """The root of a tiny COCO, which has COCO's names here and in processes started from here."""
    root = tmp_path_factory.mktemp("datasets")
    make_coco_folder(root, num_images=6, size=(96, 64), keypoints=False)
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root))
    patch.setenv("OMP_NUM_THREADS", "1")
    forkserver._forkserver._stop()  # a server that runs has read the variable
    real = {name: (DatasetCatalog[name], MetadataCatalog.get(name)) for name in NAMES}
    for name in NAMES:
        split = name.removeprefix("coco_2017_") + "2017"
        metadata = {k: v for k, v in real[name][1].as_dict().items() if k.startswith("thing")}
        _forget(name)
        annotations = root / "coco/annotations" / f"instances_{split}.json"
        register_coco_instances(name, metadata, str(annotations), str(root / "coco" / split))
    yield root
    for name, (function, metadata) in real.items():
        _forget(name)
        DatasetCatalog.register(name, function)
        MetadataCatalog[name] = metadata
    patch.undo()
    forkserver._forkserver._stop()


def _forget(name: str) -> None:
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def write_study(folder: Path, arms: list[dict], **settings) -> Path:
    """A study's file on the tiny detector; `options` go on top of it."""
    options = {
        **TINY,
        "DATASETS.TEST": "('coco_2017_val',)",
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.CHECKPOINT_PERIOD": 5,
        "SOLVER.MAX_ITER": 6,
        "TEST.PRECISE_BN.NUM_ITER": 2,
        **settings.pop("options", {}),
    }
    base = str(REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml")
    study = {"name": "tiny", "base": base, "options": options, "arms": arms, **settings}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def start_study(*arguments: object) -> subprocess.Popen:
    program = [sys.executable, "-W", "ignore", str(REPOSITORY / "tools/leakage_study.py")]
    return subprocess.Popen(
        [*program, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
