"""Config files with keys of this package are read as they were written."""

import argparse

from bn_detect.engine.train import read_config

from .conftest import REPOSITORY


def read(path, *options: str):
    return read_config(argparse.Namespace(config_file=str(path), opts=list(options)))


def test_nodes_of_this_package(tmp_path):
    shuffled = REPOSITORY / "configs/neon/faster_rcnn_lean_FPN_shuffled.yaml"
    cfg = read(shuffled, "MODEL.DOMAIN_BN.BATCH", "domain")
    assert (cfg.MODEL.ROI_BN.BATCH, cfg.MODEL.DOMAIN_BN.BATCH) == ("shuffled", "domain")
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    again = read(tmp_path / "dumped.yaml")
    assert again.MODEL.ROI_BN == cfg.MODEL.ROI_BN and again.SOLVER.STEPS == cfg.SOLVER.STEPS
