"""`convert_roi_batchnorm` on heads that know nothing of this package."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from bn_detect import convert_roi_batchnorm
from bn_detect.layers import RoIBatchNorm2d

from .images import Images, random_boxes
from .small import bn_layers, build, config

BATCHES = [
    {"batch": "images"},
    {"batch": "images", "images_per_group": 2},
    {"batch": "worker"},
    {"batch": "worker", "virtual_workers": 2},
    {"batch": "shuffled"},
    {"batch": "shuffled", "virtual_workers": 2},
    {"batch": "global"},
]


@pytest.fixture(scope="module")
def torchvision_model() -> nn.Module:
    torch.manual_seed(0)
    return fasterrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=64,
        max_size=64,
        box_batch_size_per_image=8,
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=10,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=10,
        box_score_thresh=0.0,
    )


def _batch(images: int = 2) -> tuple[list[Tensor], list[dict]]:
    g = torch.Generator().manual_seed(0)
    pixels = [torch.rand(3, 64, 64, generator=g) for _ in range(images)]
    labels = torch.tensor([1, 2])
    return pixels, [{"boxes": random_boxes(2, g), "labels": labels} for _ in range(images)]


def _convert(model: nn.Module, **setting) -> nn.Module:
    heads = model.roi_heads
    return convert_roi_batchnorm(heads.box_head, pooler=heads.box_roi_pool, **setting)


@pytest.mark.parametrize("setting", BATCHES, ids=str)
def test_torchvision_heads_train(torchvision_model, setting):
    model = copy.deepcopy(torchvision_model)
    head = model.roi_heads.box_head
    before = {n: t for n, t in [*head.named_parameters(), *head.named_buffers()]}
    assert _convert(model, **setting) is head
    after = dict([*head.named_parameters(), *head.named_buffers()])
    assert all(after[name] is tensor for name, tensor in before.items())
    assert list(head.state_dict()) == list(torchvision_model.roi_heads.box_head.state_dict())
    layers = [m for m in head.modules() if isinstance(m, RoIBatchNorm2d)]
    assert len(layers) == len(bn_layers(head)) == 4

    torch.manual_seed(0)
    sum(model.train()(*_batch()).values()).backward()
    assert layers[0].layout.rois_per_image == (8, 8)
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert all(bn.running_mean.ne(0).any() and bn.num_batches_tracked == 1 for bn in layers)

    expected = copy.deepcopy(torchvision_model)
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():
        found, expected = (m.eval()(_batch(3)[0]) for m in (model, expected))
    assert min(len(image["boxes"]) for image in expected) > 0
    torch.testing.assert_close(found, expected)


def test_torchvision_worker_batch_equals_unconverted(torchvision_model):
    losses = []
    for convert in (True, False):
        model = copy.deepcopy(torchvision_model)
        if convert:
            _convert(model, batch="worker")
        torch.manual_seed(0)
        losses.append(model.train()(*_batch()))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_stock_detectron2_heads_convert():
    """The same losses as from our registered heads."""
    ours = build(config("box", batch="images"))
    stock = build(config("box", ours=False))
    convert_roi_batchnorm(stock.box_head, "images", pooler=stock.box_pooler)
    torch.testing.assert_close(Images().train(stock), Images().train(ours))


@pytest.mark.parametrize("setting", [{"batch": "images"}, {"test_stats": "minibatch"}], ids=str)
def test_a_whole_detector_is_refused_with_what_to_pass(torchvision_model, setting):
    model = copy.deepcopy(torchvision_model)
    before = list(model.modules())
    with pytest.raises(ValueError) as error:
        convert_roi_batchnorm(model, pooler=model.roi_heads.box_roi_pool, **setting)
    for part in ("FasterRCNN", "roi_heads.box_head", "convert_batchnorm(model.backbone"):
        assert part in str(error.value)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


def test_a_layer_before_the_pooler_is_named_in_the_error(torchvision_model):
    """Some part of a detector that holds more than the head."""
    model = copy.deepcopy(torchvision_model)
    parts = torch.nn.ModuleList([model.backbone, model.roi_heads.box_head])
    convert_roi_batchnorm(parts, "images", pooler=model.roi_heads.box_roi_pool)
    model.roi_heads.box_roi_pool(
        {"0": torch.zeros(2, 256, 8, 8)}, [torch.zeros(3, 4)] * 2, [(64, 64)] * 2
    )
    with pytest.raises(ValueError, match="backbone"):
        model.train()(*_batch())
