"""Models of a few thousand parameters."""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_roi_heads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from bn_detect import add_bn_detect_config
from bn_detect.layers import RoIBatchNorm2d

# Detectron2's heads; "box", "mask" and "keypoint" are StandardROIHeads.
KINDS = ("box", "mask", "keypoint", "cascade", "c4")
# MODEL.ROI_BN: all batches, by both exchanges, with and without virtual workers.
SETTINGS = (
    {"batch": "images"},
    {"batch": "images", "images_per_group": 2},
    {"batch": "images", "virtual_workers": 2},
    {"batch": "worker"},
    {"batch": "worker", "virtual_workers": 2},
    {"batch": "shuffled"},
    {"batch": "shuffled", "virtual_workers": 2},
    {"batch": "shuffled", "exchange": "features"},
    {"batch": "global"},
)
SIZE = 64  # of an image, in pixels
CLASSES = 3
SHAPES = {
    "p0": ShapeSpec(channels=8, stride=1),  # pools boxes under 28 pixels
    "p1": ShapeSpec(channels=8, stride=2),  # and above
    "res4": ShapeSpec(channels=16, stride=16),
}


def setting_name(setting: dict) -> str:
    """Such as "images-virtual_workers=2"."""
    rest = (f"{key}={value}" for key, value in setting.items() if key != "batch")
    return "-".join([setting["batch"], *rest])


@BACKBONE_REGISTRY.register()
class TinyBackbone(Backbone):
    """One convolution per feature map."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        for name in self.names:
            stride = SHAPES[name].stride
            conv = nn.Conv2d(input_shape.channels, SHAPES[name].channels, stride, stride)
            self.add_module(name, conv)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: SHAPES[name] for name in self.names}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self, name)(x) for name in self.names}


def config(kind: str, norm: str = "BN", *, ours: bool = True, **roi_bn) -> CfgNode:
    """The config of a model with heads of one of `KINDS`.

    Args:
        norm: of every head that has the choice. In "c4" the parent takes it from the backbone's
            key, where "" stands for Detectron2's default.
        ours: False: the names of the Detectron2 parents.
        roi_bn: keys of MODEL.ROI_BN, in lower case.
    """
    cfg = get_cfg()
    add_bn_detect_config(cfg)
    m, c4 = cfg.MODEL, kind == "c4"
    m.DEVICE, m.WEIGHTS, m.BACKBONE.NAME = "cpu", "", "TinyBackbone"
    m.MASK_ON, m.KEYPOINT_ON = kind in ("mask", "cascade", "c4"), kind == "keypoint"
    m.ROI_HEADS.IN_FEATURES = ["res4"] if c4 else ["p0", "p1"]
    m.RPN.IN_FEATURES, m.ANCHOR_GENERATOR.SIZES = m.ROI_HEADS.IN_FEATURES[-1:], [[16, 32]]
    m.RPN.PRE_NMS_TOPK_TRAIN = m.RPN.PRE_NMS_TOPK_TEST = 100
    m.RPN.POST_NMS_TOPK_TRAIN = m.RPN.POST_NMS_TOPK_TEST = 10

    roi_heads = {"cascade": "CascadeROIHeads", "c4": "Res5ROIHeads"}.get(kind, "StandardROIHeads")
    m.ROI_HEADS.NAME = ("BN" if ours else "") + roi_heads
    m.ROI_HEADS.NUM_CLASSES = CLASSES
    m.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 12
    m.ROI_HEADS.POSITIVE_FRACTION = 0.5
    m.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    for head in (m.ROI_BOX_HEAD, m.ROI_MASK_HEAD, m.ROI_KEYPOINT_HEAD):
        head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO = 4, 1

    if not c4:
        m.ROI_BOX_HEAD.NAME = "BNConvFCHead" if ours else "FastRCNNConvFCHead"
        m.ROI_BOX_HEAD.NUM_CONV, m.ROI_BOX_HEAD.CONV_DIM = 2, 32
        m.ROI_BOX_HEAD.NUM_FC, m.ROI_BOX_HEAD.FC_DIM = 1, 16
    m.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = kind == "cascade"
    m.RESNETS.RES2_OUT_CHANNELS = m.RESNETS.WIDTH_PER_GROUP = 4  # res5 has 32 channels
    m.ROI_MASK_HEAD.NAME = "BNMaskConvUpsampleHead" if ours else "MaskRCNNConvUpsampleHead"
    m.ROI_MASK_HEAD.NUM_CONV, m.ROI_MASK_HEAD.CONV_DIM = 2, 32
    m.ROI_KEYPOINT_HEAD.NAME = ("BN" if ours else "") + "KRCNNConvDeconvUpsampleHead"
    m.ROI_KEYPOINT_HEAD.CONV_DIMS, m.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = [32, 32], 3
    m.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = False  # but by the images

    m.ROI_MASK_HEAD.NORM = norm
    if ours or not c4:
        m.ROI_BOX_HEAD.NORM = norm
    elif norm:
        m.RESNETS.NORM = norm
    if ours:
        m.ROI_KEYPOINT_HEAD.NORM = norm
    for key, value in roi_bn.items():
        m.ROI_BN[key.upper()] = value
    return cfg


def build(cfg: CfgNode, seed: int = 0) -> nn.Module:
    """The RoI heads of a config, float32, as they are initialized from `seed`."""
    torch.manual_seed(seed)
    return build_roi_heads(cfg, {name: SHAPES[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES})


@torch.no_grad()
def randomized(module: nn.Module, seed: int = 1) -> nn.Module:
    """`module` with parameters that matter: predictions differ, BN layers scale and shift."""
    g = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.dim() == 1:
            p += 0.3 * torch.randn(p.shape, generator=g)
        elif "predictor" in name or "score" in name:
            scale = 0.01 if "bbox_pred" in name else 0.3
            p.copy_(scale * torch.randn(p.shape, generator=g))
    return module


def bn_layers(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Name -> each BatchNorm layer, ours or torch's."""
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}


def roi_bn_layers(module: nn.Module) -> list[RoIBatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, RoIBatchNorm2d)]


def assert_same_detections(found: list[Instances], expected: list[Instances], **tolerance) -> None:
    """The same fields with close values, in the same order."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        a, b = a.get_fields(), b.get_fields()
        assert a.keys() == b.keys()
        for name in a:
            values = [f.tensor if isinstance(f, Boxes) else f for f in (a[name], b[name])]
            torch.testing.assert_close(*values, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
