"""Small backbones to train from scratch on a CPU."""

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F


@BACKBONE_REGISTRY.register()
def build_lean_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build ResNet-10: one basic block per stage, res2 to res5 (strides 4 to 32).

    It reads `MODEL.RESNETS.NORM`, `STEM_OUT_CHANNELS`, `RES2_OUT_CHANNELS` (each stage doubles the
    channels) and `OUT_FEATURES` (stages beyond the last one named there are not built). With "GN",
    the channels must be multiples of 32. Nothing is frozen.
    """
    return _lean_resnet(cfg, _stem(cfg, input_shape), list(cfg.MODEL.RESNETS.OUT_FEATURES))


@BACKBONE_REGISTRY.register()
def build_lean_resnet_small_images_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the lean ResNet for images of some 32 pixels: half the strides, without pooling.

    Reads the keys of `build_lean_resnet_backbone`.
    """
    stem = SmallStem(
        input_shape.channels, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM
    )
    return _lean_resnet(cfg, stem, list(cfg.MODEL.RESNETS.OUT_FEATURES))


@BACKBONE_REGISTRY.register()
def build_lean_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an FPN over the ResNet-10 of `build_lean_resnet_backbone`: p2 to p5 (strides 4 to 32).

    It also reads `MODEL.FPN.OUT_CHANNELS` and `NORM`, but not `MODEL.RESNETS.OUT_FEATURES`.
    """
    in_features = ["res2", "res3", "res4", "res5"]
    return FPN(
        bottom_up=_lean_resnet(cfg, _stem(cfg, input_shape), in_features),
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
    )


class SmallStem(CNNBlockBase):
    """One 3x3 convolution of stride 2 with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, 2)
        self.conv1 = Conv2d(
            in_channels,
            out_channels,
            3,
            stride=2,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, out_channels),
            activation=F.relu,
        )
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / 2, W / 2), rounded up."""
        y: Tensor = self.conv1(x)
        return y


def _stem(cfg: CfgNode, input_shape: ShapeSpec) -> BasicStem:
    resnets = cfg.MODEL.RESNETS
    return BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)


def _lean_resnet(cfg: CfgNode, stem: CNNBlockBase, out_features: list[str]) -> ResNet:
    norm = cfg.MODEL.RESNETS.NORM
    stages, channels = [], stem.out_channels
    for i in range(4):
        out_channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 2**i
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                1,
                stride_per_block=[1 if i == 0 else 2],
                in_channels=channels,
                out_channels=out_channels,
                norm=norm,
            )
        )
        channels = out_channels
    return ResNet(stem, stages, out_features=out_features)


class SmallConvBackbone(Backbone):
    """Four 3x3 convolutions with ReLU and without norm: stride 8, a receptive field of 31 pixels.

    A pixel more than 15 pixels away does not change the features of a position, so objects that
    lie apart have independent features.

    Args:
        in_channels: channels of the image.
        channels: output channels of each convolution.
    """

    def __init__(self, in_channels: int = 3, channels: tuple[int, ...] = (16, 24, 32, 32)) -> None:
        super().__init__()
        layers = []
        for out_channels, stride in zip(channels, (2, 2, 2, 1), strict=True):
            conv = Conv2d(in_channels, out_channels, 3, stride, padding=1, activation=nn.ReLU())
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            layers.append(conv)
            in_channels = out_channels
        self.body = nn.Sequential(*layers)
        self._out_features = ["p3"]
        self._out_feature_channels = {"p3": channels[-1]}
        self._out_feature_strides = {"p3": 8}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to p3 (N, channels[-1], H / 8, W / 8)."""
        return {"p3": self.body(x)}


@BACKBONE_REGISTRY.register()
def build_small_conv_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SmallConvBackbone:
    """Build `SmallConvBackbone` with its default channels."""
    return SmallConvBackbone(input_shape.channels)
