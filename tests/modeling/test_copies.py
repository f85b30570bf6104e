"""Copies of a model have RoI layouts of their own; hooks come and go with the mode."""

import copy
import io
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from bn_detect import RoILayout

from .images import Images, model_inputs
from .small import KINDS, build, config, randomized, roi_bn_layers


def _losses(model: nn.Module, images: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(model_inputs(images))


def _through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _through_torch_save,
}


def _layouts(model: nn.Module) -> list:
    return list(dict.fromkeys(bn.layout for bn in roi_bn_layers(model)))


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("after_a_step", [False, True])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_train_by_themselves(kind, how, after_a_step):
    torch.manual_seed(0)
    model = randomized(build_model(config(kind, batch="images")))
    if after_a_step:
        _losses(model)
    twin = COPIES[how](model)

    layouts, twins = _layouts(model), _layouts(twin)
    assert len(twins) == len(layouts) == {"box": 1, "cascade": 4}.get(kind, 2)
    assert not set(layouts) & set(twins)
    assert [layout.settings for layout in layouts] == [layout.settings for layout in twins]
    assert [layout.name for layout in layouts] == [layout.name for layout in twins]
    assert _hooks(model) == _hooks(twin) == len(layouts)
    before = [layout.rois_per_image for layout in layouts]
    state = copy.deepcopy(dict(model.state_dict()))

    losses = _losses(twin, images=3)
    sum(losses.values()).backward()
    assert all(len(layout.rois_per_image) == 3 for layout in twins)
    assert [layout.rois_per_image for layout in layouts] == before
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    torch.testing.assert_close(_losses(model, images=3), losses)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("test_stats", ["population", "minibatch"])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_come_and_go_with_the_mode(kind, test_stats):
    heads = build(config(kind, test_stats=test_stats))
    layouts = len(_layouts(heads))
    evaluating = layouts if test_stats == "minibatch" else 0
    for mode, hooks in ((True, layouts), (True, layouts), (False, evaluating), (False, evaluating)):
        assert heads.train(mode) is heads
        assert all(m.training is mode for m in heads.modules())
        assert _hooks(heads) == hooks
    for twin in (copy.deepcopy(heads), COPIES["pickle"](heads)):
        assert _hooks(twin) == evaluating
        assert _hooks(twin.train()) == layouts
        assert _hooks(twin.eval()) == evaluating
        assert _hooks(heads) == evaluating


def test_every_call_is_recorded_once(monkeypatch):
    """Two hooks on one layout would draw two shuffles."""
    calls = []
    record = RoILayout.record
    monkeypatch.setattr(
        RoILayout, "record", lambda self, *a, **k: calls.append(self) or record(self, *a, **k)
    )
    heads = build(config("mask", batch="shuffled", virtual_workers=2))
    for mode in (False, True, True):
        heads.train(mode)
    Images().train(heads)
    assert calls == [heads.box_head.roi_layout, heads.mask_head.roi_layout]
