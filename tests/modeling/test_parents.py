"""Without BN, and with the batch of a single worker, the heads are their Detectron2 parents."""

import pytest
import torch

from .images import Images
from .small import KINDS, assert_same_detections, build, config, randomized

OURS = {
    "box_head": "BNConvFCHead",
    "mask_head": "BNMaskConvUpsampleHead",
    "keypoint_head": "BNKRCNNConvDeconvUpsampleHead",
}
ROI_HEADS = {"cascade": "BNCascadeROIHeads", "c4": "BNRes5ROIHeads"}


def _pair(kind: str, norm: str, parent_norm: str | None = None):
    heads = build(config(kind, norm))
    parent = build(config(kind, norm if parent_norm is None else parent_norm, ours=False))
    return heads, parent


def _assert_same_state(heads, parent, **tolerance) -> None:
    expected = parent.state_dict()
    assert list(heads.state_dict()) == list(expected)
    torch.testing.assert_close(dict(heads.state_dict()), dict(expected), **tolerance)
    assert [n for n, _ in heads.named_parameters()] == [n for n, _ in parent.named_parameters()]


def _assert_same_step(heads, parent, **tolerance) -> None:
    """The same losses, gradients of parameters and features, and state afterwards."""
    grads = []
    ours, theirs = Images(), Images()
    losses, expected = ours.train(heads), theirs.train(parent)
    torch.testing.assert_close(losses, expected, **tolerance)
    for module, images, result in ((heads, ours, losses), (parent, theirs, expected)):
        module.zero_grad()
        sum(result.values()).backward()
        used = {n: f.grad for n, f in images.features.items() if n in module.in_features}
        grads.append({n: p.grad for n, p in module.named_parameters() if p.requires_grad} | used)
    assert all(g is not None and g.abs().sum() > 0 for g in grads[1].values())
    torch.testing.assert_close(*grads, **tolerance)
    _assert_same_state(heads, parent, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_config_names_our_classes(kind):
    heads = build(config(kind))
    assert type(heads).__name__ == ROI_HEADS.get(kind, "BNStandardROIHeads")
    for attribute, name in OURS.items():
        head = getattr(heads, attribute, None)
        for each in head if kind == "cascade" and attribute == "box_head" else [head]:
            assert each is None or type(each).__name__ == name


@pytest.mark.parametrize(
    ("kind", "norm"),
    # The parent of the keypoint head has no norm.
    [(kind, norm) for kind in KINDS for norm in ("", "GN") if (kind, norm) != ("keypoint", "GN")],
)
def test_without_bn_everything_equals_the_parent(kind, norm):
    exact = {"rtol": 0, "atol": 0}
    heads, parent = _pair(kind, norm)
    _assert_same_state(heads, parent, **exact)
    for module in (heads, parent):
        randomized(module)
    _assert_same_step(heads, parent, **exact)
    found, expected = Images(seed=1).detect(heads), Images(seed=1).detect(parent)
    assert min(len(instances) for instances in expected) > 5
    assert_same_detections(found, expected, **exact)


@pytest.mark.parametrize("kind", ["box", "mask", "cascade", "c4"])
def test_one_worker_with_bn_equals_the_parent(kind):
    heads, parent = (randomized(module) for module in _pair(kind, "BN"))
    for _ in range(2):  # the second with running statistics that have moved
        _assert_same_step(heads, parent, rtol=1e-4, atol=1e-6)
    assert_same_detections(
        Images(seed=1).detect(heads), Images(seed=1).detect(parent), rtol=1e-4, atol=1e-4
    )


def test_one_worker_equals_the_parent_in_float64():
    heads, parent = (randomized(module).double() for module in _pair("box", "BN"))
    ours, theirs = Images(dtype=torch.float64), Images(dtype=torch.float64)
    for module, images in ((heads, ours), (parent, theirs)):
        sum(images.train(module).values()).backward()
    for name in heads.in_features:
        torch.testing.assert_close(
            ours.features[name].grad, theirs.features[name].grad, rtol=1e-10, atol=1e-13
        )
    _assert_same_state(heads, parent, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", ["", "GN", "BN"])
def test_res5_takes_the_norm_of_the_backbone_where_it_has_none(norm):
    cfg = config("c4", "")
    expected = config("c4", "", ours=False)
    if norm:
        cfg.MODEL.RESNETS.NORM = expected.MODEL.RESNETS.NORM = norm
    heads, parent = build(cfg), build(expected)
    _assert_same_state(heads, parent, rtol=0, atol=0)
    _assert_same_step(heads, parent, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_keypoint_head_with_a_norm_adds_only_that(norm):
    heads, parent = build(config("keypoint", norm)), build(config("keypoint", ours=False))
    head, expected = (dict(m.keypoint_head.named_parameters()) for m in (heads, parent))
    for conv in ("conv_fcn1", "conv_fcn2"):
        assert head.pop(f"{conv}.norm.weight").eq(1).all()
        assert head.pop(f"{conv}.norm.bias").eq(0).all()
        del expected[f"{conv}.bias"]
    assert list(head) == list(expected)
    torch.testing.assert_close(head, expected, rtol=0, atol=0)
    losses = Images().train(heads)
    sum(losses.values()).backward()
    assert losses["loss_keypoint"].isfinite()
    assert all(p.grad.abs().sum() > 0 for p in heads.keypoint_head.parameters())
