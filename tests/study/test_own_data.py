"""Studies that train on the user's own data: imported from a folder, or registered by a module."""

import json

import pytest

from bn_detect.commands import data, study

from .conftest import write_study

ARMS = [{"name": name, "options": {"MODEL.ROI_BN.BATCH": name}} for name in ("images", "global")]
MODULE = """
from detectron2.data.datasets import register_coco_instances

for split in ("train", "val"):
    file = f"{root}/coco/annotations/instances_{split}2017.json"
    register_coco_instances(f"of_a_module_{split}", {}, file, f"{root}/coco/{split}2017")
"""


def imported(datasets, folder, patch) -> dict:
    """Bring the data by `bn-detect data import`; nothing is left to say in the study."""
    coco = datasets / "coco"
    words = ["import", "of_a_folder", "--images", str(coco / "val2017"), "--max-side", "64"]
    words += ["--annotations", str(coco / "annotations/instances_val2017.json")]
    assert data.main([*words, "--val-fraction", "0.67"]) == 0
    return {}


def by_a_module(datasets, folder, patch) -> dict:
    (folder / "their_datasets.py").write_text(f"root = {str(datasets)!r}\n{MODULE}")
    patch.syspath_prepend(str(folder))
    return {"imports": ["their_datasets"]}


@pytest.mark.parametrize(
    ("bring", "name"), [(imported, "of_a_folder"), (by_a_module, "of_a_module")]
)
def test_the_arms_are_trained_and_probed_on_it(bring, name, datasets, tmp_path, monkeypatch):
    settings = bring(datasets, tmp_path, monkeypatch)
    options = {"SOLVER.MAX_ITER": 2, "DATASETS.TRAIN": f"('{name}_train',)"}
    options |= {"DATASETS.TEST": f"('{name}_val',)", "MODEL.ROI_BN.VIRTUAL_WORKERS": 1}
    file = write_study(tmp_path, ARMS, options=options, measure=["companion_swap"], **settings)
    assert study.main([str(file), "--output", str(tmp_path / "out")]) == 0
    arms = json.loads((tmp_path / "out/results.json").read_text())["arms"]
    for arm in arms.values():
        (run,) = arm["runs"]
        assert run["iterations"] == 2 and run["measures"]["training_loss"]["last"]["loss_cls"] > 0
        assert run["measures"]["companion_swap"]["rois"] > 0
