"""Checkpoints of our heads are Detectron2's, and the other way round."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn

from .images import model_inputs
from .small import assert_same_detections, bn_layers, config, randomized


def _model(cfg: CfgNode, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return randomized(build_model(cfg), seed)


def _train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with EventStorage():
        for step in range(3):
            loss = sum(model.train()(model_inputs(seed=step)).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def _detections(model: nn.Module) -> list[Instances]:
    return [output["instances"] for output in model.eval()(model_inputs(seed=9))]


def _configs(kind: str, **roi_bn) -> tuple[CfgNode, CfgNode]:
    """Ours and Detectron2's, which has one key for the norm of the backbone and of res5."""
    ours, stock = config(kind, **roi_bn), config(kind, ours=False)
    ours.MODEL.RESNETS.NORM = stock.MODEL.RESNETS.NORM
    return ours, stock


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("kind", ["box", "mask", "cascade", "c4"])
def test_round_trip(kind, ours_first, tmp_path):
    cfgs = _configs(kind, batch="shuffled", virtual_workers=2)
    first, second = (_model(cfg, i) for i, cfg in enumerate(cfgs if ours_first else cfgs[::-1]))
    _train(first)
    expected = _detections(first)
    assert min(len(instances) for instances in expected) > 3

    DetectionCheckpointer(first, str(tmp_path)).save("head")
    path = tmp_path / "head.pth"
    saved = torch.load(path)["model"]
    assert list(saved) == list(second.state_dict())
    before = copy.deepcopy(second)
    DetectionCheckpointer(second).load(str(path))
    for name, value in second.state_dict().items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=0)
    assert_same_detections(_detections(second), expected, rtol=1e-5, atol=1e-4)
    # The statistics are part of it: with those of another model the detections are others.
    for name, bn in bn_layers(second).items():
        bn.running_mean.copy_(bn_layers(before)[name].running_mean + 1)
    with pytest.raises(AssertionError):
        assert_same_detections(_detections(second), expected, rtol=1e-5, atol=1e-4)


def test_keypoint_head_without_norm_round_trip(tmp_path):
    ours, stock = _model(config("keypoint", ""), 0), _model(config("keypoint", "", ours=False), 1)
    _train(ours)
    DetectionCheckpointer(ours, str(tmp_path)).save("head")
    DetectionCheckpointer(stock).load(str(Path(tmp_path, "head.pth")))
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert_same_detections(_detections(stock), _detections(ours), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["box", "c4"])
def test_training_goes_on_from_a_stock_checkpoint(kind):
    """From the same state both take the same step, on a worker's batch."""
    ours, stock = (_model(cfg, i) for i, cfg in enumerate(_configs(kind)))
    _train(stock)
    ours.load_state_dict(stock.state_dict())
    losses = []
    for model in (ours, stock):
        torch.manual_seed(0)
        with EventStorage():
            losses.append(model.train()(model_inputs(seed=5)))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    running = [{n: bn.running_var for n, bn in bn_layers(m).items()} for m in (ours, stock)]
    torch.testing.assert_close(*running)
