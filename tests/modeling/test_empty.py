"""Images without proposals, heads without foreground."""

import pytest
import torch
from torch import Tensor, nn

from .images import Images, SampledImages
from .small import KINDS, SETTINGS, bn_layers, build, config, randomized, setting_name

WITH_FOREGROUND_HEAD = ["mask", "keypoint", "cascade", "c4"]
pytestmark = pytest.mark.parametrize("setting", SETTINGS, ids=setting_name)


def _step(heads: nn.Module, images: Images) -> dict[str, Tensor]:
    """The losses of a step that left nothing undefined."""
    losses = images.train(heads)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in heads.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in heads.state_dict().values())
    return losses


def _heads(kind: str, setting: dict) -> nn.Module:
    return randomized(build(config(kind, **setting)))


def _bn_of(heads: nn.Module, kind: str) -> dict[str, nn.BatchNorm2d]:
    """The layers that see foreground RoIs only."""
    head = "keypoint_head" if kind == "keypoint" else "mask_head"
    return {name: bn for name, bn in bn_layers(heads).items() if name.startswith(head)}


def _assert_untouched(layers: dict[str, nn.BatchNorm2d]) -> None:
    assert layers
    for name, bn in layers.items():
        assert bn.running_mean.eq(0).all() and bn.running_var.eq(1).all(), name


@pytest.mark.parametrize("kind", WITH_FOREGROUND_HEAD)
def test_no_foreground(kind, setting):
    heads = _heads(kind, setting)
    losses = _step(heads, SampledImages(range(4), [(8, 0), (6, 0), (7, 0), (5, 0)]))
    foreground = _bn_of(heads, kind)
    assert losses["loss_keypoint" if kind == "keypoint" else "loss_mask"] == 0
    _assert_untouched(foreground)
    for name, bn in bn_layers(heads).items():
        assert name in foreground or bn.running_mean.ne(0).any()


@pytest.mark.parametrize("kind", WITH_FOREGROUND_HEAD)
def test_no_foreground_in_some_images(kind, setting):
    heads = _heads(kind, setting)
    losses = _step(heads, SampledImages(range(4), [(8, 0), (6, 3), (7, 0), (5, 2)]))
    assert losses["loss_keypoint" if kind == "keypoint" else "loss_mask"] > 0
    assert all(bn.running_mean.ne(0).any() for bn in _bn_of(heads, kind).values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_rois(kind, setting):
    heads = _heads(kind, setting)
    losses = _step(heads, Images(range(4), rois=0, objects=0))  # as sampled by Detectron2
    assert all(loss == 0 for loss in losses.values())
    assert not any(p.grad.any() for p in heads.parameters() if p.requires_grad)
    _assert_untouched(bn_layers(heads))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_rois_changes_nothing(kind, setting):
    counts = [(8, 3), (6, 2), (0, 0), (0, 0)]
    if setting == {"batch": "worker", "virtual_workers": 2}:  # else another image is a worker
        counts = [(8, 3), (0, 0), (6, 2), (0, 0)]
    present = [number for number in range(4) if counts[number][0]]
    losses = _step(_heads(kind, setting), SampledImages(range(4), counts))
    expected = _step(_heads(kind, setting), SampledImages(present, counts))
    if kind == "keypoint":  # a mean over images
        expected["loss_keypoint"] = expected["loss_keypoint"] / 2
    torch.testing.assert_close(losses, expected)


def test_proposals_without_objects(setting):
    """Background only, as sampled by Detectron2, in one image of two."""
    images = Images(range(4))
    for number in (1, 2):
        images.targets[number] = images.targets[number][:0]
    losses = _step(_heads("mask", setting), images)
    assert all(loss > 0 for loss in losses.values())
