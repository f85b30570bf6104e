"""`convert_roi_batchnorm`: foreign heads get a normalization batch and keep their tensors."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from bn_detect.layers import (
    RoIBatchNorm2d,
    RoILayout,
    convert_batchnorm,
    convert_roi_batchnorm,
    revert_roi_batchnorm,
    use_layout,
)

from .reference import features


class Nested(nn.Module):
    """BatchNorm of three kinds, at several depths, in several states."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
        self.sync = nn.SyncBatchNorm(3, eps=1e-3, momentum=None)
        self.fc = nn.BatchNorm1d(3, affine=False)
        self.untracked = nn.BatchNorm2d(3, track_running_stats=False)
        self.group_norm = nn.GroupNorm(1, 3)
        self.frozen = nn.BatchNorm2d(3).eval().requires_grad_(False)
        self.double()
        for i, t in enumerate([*self.parameters(), *self.buffers()]):
            if t.is_floating_point():
                t.data.add_(0.01 * i)


def test_every_batch_norm_keeps_its_tensors_mode_and_settings():
    model = Nested()
    before = dict(model.named_modules())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert convert_roi_batchnorm(model, "shuffled") is model

    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[name] is tensor for name, tensor in tensors.items())
    converted = []
    for name, module in model.named_modules():
        if isinstance(before[name], nn.modules.batchnorm._BatchNorm):
            assert type(module) is RoIBatchNorm2d
            for key in ("eps", "momentum", "affine", "track_running_stats", "training"):
                assert getattr(module, key) == getattr(before[name], key), (name, key)
            converted.append(module)
        else:
            assert module is before[name]
    assert len(converted) == 5
    assert len({module.layout for module in converted}) == 1
    assert converted[0].layout.settings.batch == "shuffled"


def test_a_module_that_is_a_batch_norm_is_returned_converted():
    bn = nn.BatchNorm2d(3)
    new = convert_roi_batchnorm(bn, "global", seed=5, name="mine")
    assert type(new) is RoIBatchNorm2d and new.weight is bn.weight
    assert (new.layout.settings.seed, new.layout.name) == (5, "mine")


def test_a_batch_norm_used_twice_stays_one():
    bn = nn.BatchNorm2d(3)
    model = convert_roi_batchnorm(nn.Sequential(bn, nn.Sequential(bn, nn.ReLU()), bn))
    assert type(model[0]) is RoIBatchNorm2d
    assert model[0] is model[1][0] is model[2]


def test_converting_again_replaces_the_layout():
    model = convert_roi_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), "worker")
    layout = RoILayout(name="other")
    use_layout(model, layout)
    assert model[0].layout is layout


def test_all_tensors_are_on_the_device_of_the_layer():
    bn = convert_roi_batchnorm(nn.BatchNorm2d(3, device="meta"))
    assert {t.device.type for t in (*bn.parameters(), *bn.buffers())} == {"meta"}


@pytest.mark.parametrize("training", [True, False])
def test_a_converted_model_computes_what_it_did(training):
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Tanh()).double()
    ours = convert_roi_batchnorm(copy.deepcopy(theirs))
    x = features(6, 3, 4, 4)
    for model in (theirs, ours):
        model.train(training)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch": "images"}, r"batch='images' with virtual_workers=1 depends .* pass .*pooler"),
        ({"batch": "worker", "virtual_workers": 2}, "batch='worker' with virtual_workers=2"),
        ({"test_stats": "minibatch"}, "virtual_workers=1 and test_stats='minibatch' depends"),
        ({"batch": "sync"}, "^batch is 'sync'"),
    ],
)
def test_settings_that_cannot_be_are_refused(kwargs, message):
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=message):
        convert_roi_batchnorm(model, **kwargs)
    assert type(model[0]) is nn.BatchNorm2d


def test_mini_batch_statistics_at_inference_can_be_asked_for():
    settings = {"test_stats": "minibatch", "test_images_per_group": 2}
    bn = convert_roi_batchnorm(nn.BatchNorm2d(3), pooler=nn.Identity(), **settings).eval()
    x = features(7, 3, 4, 4).float()
    bn.layout.record([2, 3, 2])  # as its pooler does
    expected = torch.cat([nn.BatchNorm2d(3)(part) for part in (x[:5], x[5:])])
    torch.testing.assert_close(bn(x), expected)


def test_a_module_without_batch_norm_is_refused():
    with pytest.raises(ValueError, match="no BatchNorm layer in Conv2d"):
        convert_roi_batchnorm(nn.Conv2d(3, 3, 1))


# What cannot be converted is in tests/faults/test_layers.py.


def test_a_lazy_layer_converts_once_it_knows_its_channels():
    model = nn.Sequential(nn.LazyBatchNorm2d())
    model(torch.zeros(2, 3, 1, 1))
    assert type(convert_roi_batchnorm(model)[0]) is RoIBatchNorm2d


def test_parametrizations_elsewhere_do_not_matter():
    conv = parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    model = convert_roi_batchnorm(nn.Sequential(conv, nn.BatchNorm2d(3)))
    assert type(model[1]) is RoIBatchNorm2d and model[0] is conv


# Back.


def test_reverting_gives_plain_layers_with_the_same_tensors():
    model, stock = Nested(), Nested()
    model.load_state_dict(stock.state_dict())
    convert_roi_batchnorm(model, "shuffled")
    model.conv[1][0].train(False)
    tensors = [*model.parameters(), *model.buffers()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert revert_roi_batchnorm(model) is model
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds == [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm2d]
    after = {id(t) for t in (*model.parameters(), *model.buffers())}
    assert after <= {id(t) for t in tensors}
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    for bn, other in ((model.sync, stock.sync), (model.untracked, stock.untracked)):
        for key in ("eps", "momentum", "affine", "track_running_stats", "training"):
            assert getattr(bn, key) == getattr(other, key)
    assert not model.conv[1][0].training
    x = features(4, 3)
    torch.testing.assert_close(model.fc(x), stock.fc(x))


def test_reverting_ends_watching_and_leaves_other_layers_alone():
    pooler, head = nn.Identity(), nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3))
    other = head[1]
    convert_roi_batchnorm(head, "images", pooler=pooler)
    convert_roi_batchnorm(head, "images", pooler=pooler)  # once more: still one class back
    assert pooler._forward_pre_hooks
    revert_roi_batchnorm(head)
    assert type(head[0]) is nn.BatchNorm2d and head[1] is other
    assert type(revert_roi_batchnorm(convert_batchnorm(nn.BatchNorm1d(3)))) is nn.BatchNorm1d


# What replaces our layers.


class Conv(nn.Module):
    """As Detectron2's convolution has its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor, boxes: list | None = None) -> torch.Tensor:
        return self.norm(x)


@pytest.mark.parametrize("batch", ["worker", "shuffled", "images"])
def test_sync_batch_norm_does_not_replace_our_layers_without_a_word(batch, caplog):
    pooler = nn.Sequential(Conv())[0]
    model = nn.ModuleDict({"pooler": pooler, "head": nn.Sequential(Conv(), Conv())})
    convert_roi_batchnorm(model["head"], batch, pooler=pooler, name="my head")
    with caplog.at_level(logging.ERROR):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    (record,) = caplog.records
    for part in ("my head", "SyncBatchNorm", "before"):
        assert part in record.getMessage()
    with pytest.raises(RuntimeError, match="my head: SyncBatchNorm"):
        pooler(torch.zeros(2, 3, 1, 1), [range(2)])


def test_sync_batch_norm_elsewhere_and_before_is_fine(caplog):
    model = nn.ModuleDict({"backbone": Conv(), "head": nn.Sequential(Conv())})
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    convert_roi_batchnorm(model["head"])
    nn.SyncBatchNorm.convert_sync_batchnorm(model["backbone"])
    model["head"][0].norm = nn.SyncBatchNorm(3)  # by the user's own hand
    del model
    assert not caplog.records
