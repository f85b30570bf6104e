"""The small backbone: what it puts out, and that objects that lie apart do not meet in it."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch.nn.modules.batchnorm import _NormBase

from bn_detect import add_bn_detect_config
from bn_detect.modeling import build_small_conv_backbone

# Detectron2's registry builds by MODEL.BACKBONE.NAME.
NAME = build_small_conv_backbone.__name__


def small_backbone():
    cfg = get_cfg()
    add_bn_detect_config(cfg)
    cfg.MODEL.BACKBONE.NAME = NAME
    torch.manual_seed(0)
    return build_backbone(cfg)


def test_it_puts_out_the_shape_that_it_states():
    backbone = small_backbone()
    shape = backbone.output_shape()
    assert shape == {"p3": ShapeSpec(channels=32, stride=8)}
    features = backbone(torch.randn(2, 3, 64, 96))["p3"]
    assert features.shape == (2, shape["p3"].channels, 64 // 8, 96 // 8)


def test_a_feature_sees_31_pixels_of_its_own_image():
    backbone = small_backbone()
    images = torch.randn(2, 3, 128, 128, requires_grad=True)
    backbone(images)["p3"][0, :, 8, 8].sum().backward()
    rows, columns = images.grad[0].abs().sum(0).nonzero().T
    assert images.grad[1].abs().max() == 0
    for seen in (rows, columns):
        assert (seen.min(), seen.max()) == (64 - 15, 64 + 15)


def test_it_has_no_norm():
    assert not any(isinstance(m, _NormBase) for m in small_backbone().modules())


def test_lean_resnets_put_out_the_shapes_that_they_state():
    for name, factor in (("lean_resnet", 1), ("lean_resnet_small_images", 2)):
        cfg = get_cfg()
        add_bn_detect_config(cfg)
        cfg.MODEL.BACKBONE.NAME = f"build_{name}_backbone"
        cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.OUT_FEATURES = "BN", ["res2", "res4"]
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
        backbone = build_backbone(cfg, ShapeSpec(channels=1))
        strides = {key: shape.stride for key, shape in backbone.output_shape().items()}
        assert strides == {"res2": 4 // factor, "res4": 16 // factor}
        features = backbone(torch.randn(2, 1, 32, 64))
        for key, stride in strides.items():
            channels = backbone.output_shape()[key].channels
            assert features[key].shape == (2, channels, 32 // stride, 64 // stride)
        assert sum(isinstance(m, _NormBase) for m in backbone.modules()) == 1 + 3 * 2 + 2
