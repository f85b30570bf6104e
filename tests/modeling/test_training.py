"""Every head trains under every normalization batch."""

import pytest
import torch

from bn_detect.layers import RoIBatchNorm2d, set_iteration

from .images import Images, SampledImages
from .small import KINDS, SETTINGS, bn_layers, build, config, randomized, setting_name


def _losses(heads, iteration: int = 0, images: Images | None = None) -> torch.Tensor:
    set_iteration(heads, iteration)
    return torch.stack(list((images or Images(range(4))).train(heads).values()))


@pytest.mark.parametrize("setting", SETTINGS, ids=setting_name)
@pytest.mark.parametrize("kind", KINDS)
def test_trains(kind, setting):
    heads = build(config(kind, **setting))
    layers = bn_layers(heads)
    assert len(layers) >= 2 and all(isinstance(bn, RoIBatchNorm2d) for bn in layers.values())
    parameters = {n: p for n, p in heads.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.02)
    images = Images(range(4))
    first = None
    for _ in range(4):
        losses = images.train(heads)
        loss = sum(losses.values())
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        assert all(loss.isfinite() for loss in losses.values())
        useless = [
            n
            for n, p in parameters.items()
            if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
        ]
        assert not useless
        optimizer.step()
    assert loss.item() < first
    for bn in layers.values():
        assert bn.num_batches_tracked == 4
        assert bn.running_mean.isfinite().all() and bn.running_mean.ne(0).all()
        assert bn.running_var.isfinite().all() and bn.running_var.ne(1).all()


@pytest.mark.parametrize("setting", SETTINGS, ids=setting_name)
@pytest.mark.parametrize("kind", KINDS)
def test_trains_under_autocast(kind, setting):
    heads = randomized(build(config(kind, **setting)))
    expected = Images(range(4)).train(heads)
    with torch.autocast("cpu", torch.bfloat16):
        losses = Images(range(4)).train(heads)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in heads.parameters() if p.requires_grad)
    assert all(bn.running_mean.dtype == torch.float32 for bn in bn_layers(heads).values())
    for name in ("loss_cls", "loss_mask", "loss_keypoint"):  # boxes of later stages may move
        if name in losses:
            torch.testing.assert_close(losses[name].float(), expected[name], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_differ(kind):
    """Otherwise the batch would not reach the layers."""
    settings = [
        {"batch": "images"},
        {"batch": "worker"},
        {"batch": "worker", "virtual_workers": 2},
        {"batch": "shuffled", "virtual_workers": 2},
    ]
    losses = [_losses(randomized(build(config(kind, **setting)))) for setting in settings]
    for i, a in enumerate(losses):
        for b in losses[:i]:
            assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize(
    "setting",
    [{"batch": "global"}, {"batch": "shuffled"}, {"batch": "shuffled", "exchange": "features"}],
    ids=setting_name,
)
@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_is_one_group(kind, setting):
    heads, worker = (randomized(build(config(kind, **s))) for s in (setting, {"batch": "worker"}))
    torch.testing.assert_close(_losses(heads), _losses(worker))


@pytest.mark.parametrize("kind", KINDS)
def test_shuffles_follow_the_iteration(kind):
    heads = randomized(build(config(kind, batch="shuffled", virtual_workers=2)))
    first, again = _losses(heads, 5), _losses(heads, 5)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (_losses(heads, 6) - first).abs().max() > 1e-4
    resumed = randomized(build(config(kind, batch="shuffled", virtual_workers=2)))
    torch.testing.assert_close(_losses(resumed, 5), first, rtol=0, atol=0)


def test_cascade_stages_and_heads_draw_shuffles_of_their_own():
    heads = randomized(build(config("cascade", batch="shuffled", virtual_workers=2)))
    counts = [(8, 8)] * 4  # the mask head gets the same RoIs as the box heads
    _losses(heads, images=SampledImages(range(4), counts))
    layouts = [head.roi_layout for head in heads.box_head] + [heads.mask_head.roi_layout]
    groups = [layout.partition(32, torch.device("cpu")).group.tolist() for layout in layouts]
    assert [layout.rois_per_image for layout in layouts] == [(8, 8, 8, 8)] * 4
    assert all(sorted(group) == [0] * 16 + [1] * 16 for group in groups)
    assert len({tuple(group) for group in groups}) == 4
