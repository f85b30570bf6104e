"""A classifier under the trainer: it learns, a resumed run repeats, FreezeBN and PreciseBN act."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng

from bn_detect.data import register_image_folders
from bn_detect.engine import BNTrainer
from bn_detect.engine.evaluation import evaluate_under, evaluation_table
from tests.configs.test_configs import load
from tests.data.image_folders import make_image_folders

from ..helpers.in_process import assert_same_bits, checkpoint

NAMES = ("tiny_classes_train", "tiny_classes_val")


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    root = make_image_folders(tmp_path_factory.mktemp("classes"), images=8, size=(32, 32))
    for name in NAMES:
        register_image_folders(name, root / name.rsplit("_", 1)[1])
    yield
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(output, **keys) -> CfgNode:
    cfg = load("digits/Base-digits.yaml")
    settings = {
        "MODEL__CLASSIFIER__NUM_CLASSES": 3,
        "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
        "MODEL__RESNETS__RES2_OUT_CHANNELS": 8,
        "DATASETS__TRAIN": NAMES[:1],
        "DATASETS__TEST": NAMES[1:],
        "SOLVER__IMS_PER_BATCH": 8,
        "SOLVER__MAX_ITER": 12,
        "SOLVER__CHECKPOINT_PERIOD": 5,
        "TEST__PRECISE_BN__NUM_ITER": 3,
        "OUTPUT_DIR": str(output),
    }
    settings |= keys
    cfg.merge_from_list([x for k, v in settings.items() for x in (k.replace("__", "."), v)])
    output.mkdir(parents=True, exist_ok=True)
    return cfg


def trained(cfg: CfgNode, resume: bool = False) -> BNTrainer:
    seed_all_rng(cfg.SEED)
    trainer = BNTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_it_learns_brightness_and_is_evaluated_under_three_statistics(tmp_path):
    cfg = config(tmp_path, SOLVER__MAX_ITER=30, MODEL__ROI_BN__TEST_IMAGES_PER_GROUP=8)
    trainer = trained(cfg)
    assert trainer._last_eval_results["classification"]["top1_error"] < 20
    every = evaluate_under(cfg, trainer.model, ["population", "minibatch", "precise"])
    errors = {k: r[NAMES[1]]["classification"]["top1_error"] for k, r in every.items()}
    assert errors["population"] == errors["precise"]  # which the trainer had put there
    table = evaluation_table(every)
    assert "classification top1_error" in table and f"{errors['minibatch']:.1f}" in table


def test_a_resumed_run_repeats_batches_of_one_class_and_their_shuffles(tmp_path):
    keys = {
        "MODEL__ROI_BN__BATCH": "shuffled",
        "MODEL__ROI_BN__VIRTUAL_WORKERS": 4,
        "DATALOADER__CLASSES_PER_WORKER_BATCH": 1,
    }
    trained(config(tmp_path, **keys))
    whole = checkpoint(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")
    trained(config(tmp_path, **keys), resume=True)
    assert_same_bits(checkpoint(tmp_path), whole)


def test_frozen_statistics_stay(tmp_path):
    keys = {"MODEL__ROI_BN__FREEZE_ITER": 4, "MODEL__ROI_BN__BATCH": "images"}
    keys |= {"MODEL__ROI_BN__IMAGES_PER_GROUP": 2, "SOLVER__CHECKPOINT_PERIOD": 5}
    trained(config(tmp_path, **keys))
    early, final = checkpoint(tmp_path, "model_0000004"), checkpoint(tmp_path)
    for key in early:
        same = torch.equal(early[key], final[key])
        if "running" in key:
            assert same, key
        elif key.endswith("conv1.weight"):
            assert not same, key
