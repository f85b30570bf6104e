"""LazyConfig files as configs: what is taken over, overrides, and what is refused."""

import argparse

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.solver import LRMultiplier

from bn_detect.commands import domain_shift, train
from bn_detect.configuration.check import check_run
from bn_detect.configuration.reading import read_config
from bn_detect.configuration.resuming import changes
from bn_detect.engine.trainer import BNTrainer
from bn_detect.probes import own_batch

from ..helpers.train_net import REPOSITORY

SMALL = REPOSITORY / "tests/helpers/small_lazy.py"
BATCH = "model.roi_heads.box_head.roi_batch.batch"


def read(*words, file=SMALL, **more):
    return read_config(argparse.Namespace(config_file=str(file), opts=list(words), **more))


@pytest.fixture
def ours(monkeypatch):
    monkeypatch.setenv("SMALL_LAZY_OURS", "1")


def test_what_commands_ask_for_is_taken_over():
    cfg = read("train.max_iter=7", "TEST.PRECISE_BN.NUM_ITER", "3")
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",) and cfg.DATASETS.TEST == ("coco_2017_val",)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.DEVICE) == (7, 2, "cpu")
    assert cfg.TEST.PRECISE_BN.NUM_ITER == 3
    assert not cfg.MODEL.MASK_ON and cfg.INPUT.FORMAT == "BGR"
    assert cfg == read("train.max_iter=7", "TEST.PRECISE_BN.NUM_ITER", "3")


@pytest.mark.parametrize("words", [[f"{BATCH}=images"], [BATCH, "images"]])
def test_both_ways_to_write_an_override(words, ours):
    cfg = read(*words, "MODEL.ROI_BN.VIRTUAL_WORKERS", 2, "SEED", 5)
    settings = own_batch(BNTrainer.build_model(cfg))
    assert (settings.batch, settings.virtual_workers, settings.seed) == ("images", 2, 5)
    assert cfg.MODEL.LAZY_CONFIG.DIGEST != read().MODEL.LAZY_CONFIG.DIGEST


def test_an_override_ends_an_option_of_several_values():
    common = ["--config-file", "lazy.py", "--weights", "w.pth", "--corruptions", "fog", "snow"]
    args = domain_shift.parse_arguments([*common, f"{BATCH}=images", "SEED", "1"])
    assert args.corruptions == ["fog", "snow"] and args.opts == [BATCH, "images", "SEED", "1"]
    common = ["--config-file", "lazy.py", "--eval-only", "--eval-stats", "population", "minibatch"]
    args = train.parse_arguments([*common, f"{BATCH}=images"])
    assert args.eval_stats == ["population", "minibatch"] and args.opts == [f"{BATCH}=images"]


def test_heads_of_rethinking_batchnorm_are_global(monkeypatch):
    """NaiveSyncBatchNorm(stats_mode="N"), which YAML calls naiveSyncBN_N."""
    assert own_batch(BNTrainer.build_model(read())).batch == "global"
    assert type(get_norm("naiveSyncBN_N", 4)).__name__ == "NaiveSyncBatchNorm"
    yaml = REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml"
    for norm, batch in (("naiveSyncBN_N", "global"), ("naiveSyncBN", "global"), ("BN", "worker")):
        words = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NORM", norm)
        words += ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.DEVICE", "cpu")
        assert own_batch(BNTrainer.build_model(read(*words, file=yaml))).batch == batch


def test_optimizer_schedule_and_mapper_are_the_files_own():
    cfg = read("optimizer.lr=0.5", "train.max_iter=100")
    model = BNTrainer.build_model(cfg)
    optimizer = BNTrainer.build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.SGD and optimizer.defaults["lr"] == 0.5
    scheduler = BNTrainer.build_lr_scheduler(cfg, optimizer)
    assert isinstance(scheduler, LRMultiplier)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.067)  # its warm-up
    assert type(BNTrainer.build_mapper(cfg, True)).__name__ == "BNDatasetMapper"


def test_a_resumed_run_keeps_its_model_and_its_optimizer(ours):
    before = read(f"{BATCH}=images").dump()
    assert changes(before, read(f"{BATCH}=images")) == ""
    said = changes(before, read(f"{BATCH}=images", "train.max_iter=9", "train.output_dir=x"))
    assert "SOLVER.MAX_ITER was 3, is 9" in said
    for word in (f"{BATCH}=shuffled", "optimizer.lr=1"):
        with pytest.raises(ValueError) as error:
            changes(before, read(word))
        assert f"{BATCH}=images" in str(error.value) and word in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([f"{BATCH}=half"], "'half'; it must be one of"),
        (["model.roi_heads.box_hed.fc_dims=[8]"], "has no model.roi_heads.box_hed"),
        (["model.roi_heads.num_classes=[1"], "model.roi_heads.num_classes=[1"),
        (["MODEL.ROI_BN.BATCH", "shuffled"], "MODEL.ROI_BN.BATCH has no effect on the LazyConfig"),
        (["SOLVER.BASE_LR", "1"], "SOLVER.BASE_LR has no effect"),
        (["train.max_iter=3", "--resume"], "--resume stands after the KEY VALUE pairs"),
        (["train.max_iter"], "'train.max_iter' has no value"),
        (["train.amp.enabled=2"], "train.amp.enabled is 2"),
        (["dataloader.train.total_batch_size=0"], "SOLVER.IMS_PER_BATCH is 0"),
    ],
)
def test_mistakes(words, said, ours):
    with pytest.raises(ValueError) as error:
        check_run(read(*words), 1, BNTrainer, ())
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = dict(", "SyntaxError"),
        ("model = dict()\ntrain = dict()", "has no dataloader"),
        ("import pkg_resources_of_old", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_none(text, said, tmp_path):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ValueError) as error:
        read(file=tmp_path / "c.py")
    assert said in str(error.value) and str(tmp_path / "c.py") in str(error.value)


def test_without_an_optimizer_it_does_not_train(tmp_path):
    text = SMALL.read_text() + "\ndel optimizer\n"
    (tmp_path / "c.py").write_text(text.replace("optimizer.lr = 0.01", ""))
    cfg = read(file=tmp_path / "c.py")
    check_run(cfg, 1, BNTrainer, (), trains=False)
    with pytest.raises(ValueError, match="has no optimizer, which training needs"):
        check_run(cfg, 1, BNTrainer, ())


def test_yaml_cannot_have_a_program_executed(tmp_path):
    (tmp_path / "run.yaml").write_text(read().dump())
    with pytest.raises(ValueError, match="MODEL.LAZY_CONFIG.FILE is .*use --config-file with the"):
        read(file=tmp_path / "run.yaml")
    assert (
        read(file=tmp_path / "run.yaml", made_here=True).MODEL.LAZY_CONFIG
        == read().MODEL.LAZY_CONFIG
    )


def test_a_file_that_was_changed_meanwhile_is_refused(tmp_path):
    file = tmp_path / "c.py"
    file.write_text(SMALL.read_text())
    cfg = read(file=file)
    file.write_text(SMALL.read_text().replace("fc_dims = [16], [16]", "fc_dims = [16], [8]"))
    with pytest.raises(ValueError, match="gives another model or other data"):
        BNTrainer.build_model(cfg)
