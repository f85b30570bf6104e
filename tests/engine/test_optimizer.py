"""SOLVER.OPTIMIZER and SOLVER.BACKBONE_MULTIPLIER."""

import pytest
import torch
from detectron2.solver import build_optimizer as build_detectron2s
from torch import nn

from bn_detect.configuration.keys import default_config
from bn_detect.engine.optimizer import build_optimizer


def config(**solver):
    cfg = default_config()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 0.01, 0.1
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def model():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Linear(1, 1))
    return nn.ModuleDict({"backbone": nn.Conv2d(3, 4, 3), "backbones": nn.Linear(2, 2), "h": head})


def settings_of(optimizer, of):
    """Learning rate and weight decay by parameter."""
    names = {id(p): name for name, p in of.named_parameters()}
    groups = optimizer.param_groups
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def steps(optimizer, of, count=3):
    torch.manual_seed(1)
    for _ in range(count):
        for parameter in of.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in of.parameters()])


@pytest.mark.parametrize("solver", [{}, {"NESTEROV": True, "BIAS_LR_FACTOR": 2.0}], ids=str)
def test_by_default_it_is_detectron2s(solver):
    ours, theirs = model(), model()
    cfg = config(WEIGHT_DECAY_BIAS=0.03, **solver)
    one, other = build_optimizer(cfg, ours), build_detectron2s(cfg, theirs)
    assert settings_of(one, ours) == settings_of(other, theirs)
    assert torch.equal(steps(one, ours), steps(other, theirs))


def test_adamw_is_torchs():
    ours, theirs = model(), model()
    cfg = config(OPTIMIZER="ADAMW", WEIGHT_DECAY_NORM=0.1)
    expected = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    assert torch.allclose(steps(build_optimizer(cfg, ours), ours), steps(expected, theirs))


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_the_backbone_has_its_own_rate_and_norm_layers_their_own_decay(name):
    trained = model()
    found = settings_of(
        build_optimizer(config(OPTIMIZER=name, BACKBONE_MULTIPLIER=0.1), trained), trained
    )
    rates = {key: rate for key, (rate, _) in found.items()}
    assert {key for key, rate in rates.items() if rate == pytest.approx(0.001)} == {
        "backbone.weight",
        "backbone.bias",
    }
    assert {rate for key, rate in rates.items() if not key.startswith("backbone.")} == {0.01}
    assert {key for key, (_, decay) in found.items() if decay == 0} == {"h.1.weight", "h.1.bias"}


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_gradients_are_clipped_as_the_config_says(name):
    trained = nn.ModuleDict({"backbone": nn.Linear(1, 1, bias=False)})
    cfg = config(OPTIMIZER=name)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "norm", 1.0
    optimizer = build_optimizer(cfg, trained)
    weight = trained["backbone"].weight
    weight.grad = torch.full_like(weight, 50.0)
    optimizer.step()
    assert weight.grad.norm() == pytest.approx(1.0)
