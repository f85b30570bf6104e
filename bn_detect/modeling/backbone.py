"""A small ResNet-FPN to train from scratch on a CPU."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock


@BACKBONE_REGISTRY.register()
def build_lean_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet-10-FPN: one basic block per stage, p2 to p5 (strides 4 to 32).

    Reads `MODEL.RESNETS.NORM`, `STEM_OUT_CHANNELS`, `RES2_OUT_CHANNELS` (doubled by each stage) and
    `MODEL.FPN.OUT_CHANNELS`, `NORM`. With "GN", channels are multiples of 32. Nothing is frozen.
    """
    norm = cfg.MODEL.RESNETS.NORM
    stem = BasicStem(input_shape.channels, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, norm=norm)
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
    in_features = ["res2", "res3", "res4", "res5"]
    return FPN(
        bottom_up=ResNet(stem, stages, out_features=in_features),
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
    )
