"""A head trained with statistics shared by the levels, given statistics of each."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from bn_detect.commands.precise_bn import main
from bn_detect.population import update_population_stats
from bn_detect.runtime.checkpointer import AtomicCheckpointer

from ..helpers.in_process import Trainer, assert_same_bits, config

RETINANET = {
    "MODEL__META_ARCHITECTURE": "BNRetinaNet",
    "MODEL__RETINANET__IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL__RETINANET__NUM_CLASSES": 80,
    "MODEL__RETINANET__NUM_CONVS": 1,
    "MODEL__RETINANET__NORM": "BN",
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    "MODEL__ANCHOR_GENERATOR__SIZES": [[16], [32], [64]],
    "DATASETS__TEST": "('in_process_val',)",
}
LEVELS = 3


def settings(datasets, output, **keys) -> CfgNode:
    return config(datasets, output, **(RETINANET | keys))


@pytest.fixture(scope="module")
def weights(datasets, tmp_path_factory):
    """A checkpoint with shared statistics that are those of no data."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = build_model(settings(datasets, folder))
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    AtomicCheckpointer(model, str(folder)).save("model", iteration=7)
    return folder / "model.pth"


def state(path) -> dict:
    return torch.load(path, weights_only=False)["model"]


def test_tool_writes_the_statistics_of_each_level(datasets, weights, tmp_path, capsys):
    cfg = settings(datasets, tmp_path, MODEL__LEVEL_BN__POPULATION="level")
    shared = settings(datasets, tmp_path)
    (tmp_path / "config.yaml").write_text(shared.dump())
    output, before = tmp_path / "out.pth", weights.read_bytes()
    files = f"--config-file {tmp_path}/config.yaml --weights {weights} --output {output}"
    assert main(f"{files} --per-level --evaluate --num-iter 2".split()) == 0
    printed = capsys.readouterr().out
    assert weights.read_bytes() == before
    assert "head.cls_subnet.1.level2" in printed
    assert "Use it with MODEL.LEVEL_BN.POPULATION level" in printed
    table = [line.split() for line in printed.splitlines() if line.startswith("in_process_val")]
    assert {row[1] for row in table} == {"before", "after"}

    old, new = state(weights), state(output)
    statistics = {key for key in old if "running" in key}
    assert len(statistics) == 4 and all(new[key].shape == (LEVELS, 32) for key in statistics)
    rest = old.keys() - statistics
    assert_same_bits({k: new[k] for k in rest}, {k: old[k] for k in rest})

    model = build_model(cfg)
    AtomicCheckpointer(model).load(str(weights))
    loader = Trainer.build_population_loader(cfg, cfg.SEED)
    update_population_stats(model, loader, 2, progress=False)
    expected = {k: v for k, v in model.state_dict().items() if k in statistics}
    assert_same_bits({k: new[k] for k in statistics}, expected)
    means = new["head.cls_subnet.1.running_mean"]
    assert not torch.equal(means[0], means[1])


def test_shared_statistics_load_into_each_level(datasets, weights, tmp_path):
    cfg = settings(datasets, tmp_path, MODEL__LEVEL_BN__POPULATION="level")
    model = build_model(cfg)
    AtomicCheckpointer(model).load(str(weights))
    for name, value in state(weights).items():
        if "running" in name:
            assert torch.equal(model.state_dict()[name], value.expand(LEVELS, -1))


def test_refused_where_no_head_has_levels(datasets, tmp_path, capsys):
    cfg = config(datasets, tmp_path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "in.pth").touch()
    files = f"--config-file {tmp_path}/config.yaml --weights {tmp_path}/in.pth --in-place"
    assert main([*files.split(), "--per-level"]) == 2
    assert "no head has BatchNorm over the feature levels" in capsys.readouterr().err
