"""The heads without a cfg: from keyword arguments, as LazyConfig builds them."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from bn_detect import NormalizationBatch
from bn_detect.modeling import (
    BNCascadeROIHeads,
    BNConvFCHead,
    BNKRCNNConvDeconvUpsampleHead,
    BNMaskConvUpsampleHead,
    BNRes5ROIHeads,
    BNStandardROIHeads,
)

from .images import Images
from .small import CLASSES, build, config, randomized, roi_bn_layers

SETTING = {"batch": "shuffled", "virtual_workers": 2}
# Both ways to say it in a LazyConfig file.
ROI_BATCHES = [NormalizationBatch(**SETTING), L(NormalizationBatch)(**SETTING)]
IN_FEATURES = ["p0", "p1"]
SAMPLING = {"num_classes": CLASSES, "batch_size_per_image": 12, "positive_fraction": 0.5}


def _pooler(scales: tuple) -> dict:
    return L(ROIPooler)(output_size=4, scales=scales, sampling_ratio=1, pooler_type="ROIAlignV2")


def _matcher(iou: float) -> dict:
    return L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)


def _predictor(channels: int, weights: tuple = (10, 10, 5, 5), **kwargs) -> dict:
    return L(FastRCNNOutputLayers)(
        input_shape=ShapeSpec(channels=channels),
        box2box_transform=L(Box2BoxTransform)(weights=weights),
        num_classes=CLASSES,
        **kwargs,
    )


def _box_head(roi_batch) -> dict:
    return L(BNConvFCHead)(
        input_shape=ShapeSpec(channels=8, height=4, width=4),
        conv_dims=[32, 32],
        fc_dims=[16],
        conv_norm="BN",
        roi_batch=roi_batch,
    )


def _mask_head(channels: int, roi_batch) -> dict:
    return L(BNMaskConvUpsampleHead)(
        input_shape=ShapeSpec(channels=channels, height=4, width=4),
        num_classes=CLASSES,
        conv_dims=[32, 32, 32],
        conv_norm="BN",
        roi_batch=roi_batch,
    )


def _keypoint_head(roi_batch) -> dict:
    return L(BNKRCNNConvDeconvUpsampleHead)(
        input_shape=ShapeSpec(channels=8, height=4, width=4),
        num_keypoints=3,
        conv_dims=[32, 32],
        conv_norm="BN",
        loss_normalizer=3 * 12 * 0.5,
        roi_batch=roi_batch,
    )


def _box(roi_batch) -> dict:
    return {
        "box_in_features": IN_FEATURES,
        "box_pooler": _pooler((1, 1 / 2)),
        "box_head": _box_head(roi_batch),
        "box_predictor": _predictor(16),
        "proposal_matcher": _matcher(0.5),
    }


def _mask(roi_batch) -> dict:
    return {
        "mask_in_features": IN_FEATURES,
        "mask_pooler": _pooler((1, 1 / 2)),
        "mask_head": _mask_head(8, roi_batch),
    }


def _lazy_mask(roi_batch) -> dict:
    return L(BNStandardROIHeads)(**SAMPLING, **_box(roi_batch), **_mask(roi_batch))


def _lazy_keypoint(roi_batch) -> dict:
    return L(BNStandardROIHeads)(
        **SAMPLING,
        **_box(roi_batch),
        keypoint_in_features=IN_FEATURES,
        keypoint_pooler=_pooler((1, 1 / 2)),
        keypoint_head=_keypoint_head(roi_batch),
    )


def _lazy_cascade(roi_batch) -> dict:
    weights = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
    return L(BNCascadeROIHeads)(
        **SAMPLING,
        box_in_features=IN_FEATURES,
        box_pooler=_pooler((1, 1 / 2)),
        box_heads=[_box_head(roi_batch) for _ in range(3)],
        box_predictors=[_predictor(16, w, cls_agnostic_bbox_reg=True) for w in weights],
        proposal_matchers=[_matcher(iou) for iou in (0.5, 0.6, 0.7)],
        **_mask(roi_batch),
    )


def _lazy_c4(roi_batch) -> dict:
    return L(BNRes5ROIHeads)(
        **SAMPLING,
        in_features=["res4"],
        pooler=_pooler((1 / 16,)),
        res5=L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=3,
            stride_per_block=[2, 1, 1],
            in_channels=16,
            bottleneck_channels=32,
            out_channels=32,
            norm="BN",
            stride_in_1x1=True,
        ),
        box_predictor=_predictor(32),
        proposal_matcher=_matcher(0.5),
        mask_head=_mask_head(32, roi_batch),
        roi_batch=roi_batch,
    )


HEADS = {
    "box": _box_head,
    "mask": lambda roi_batch: _mask_head(8, roi_batch),
    "keypoint": _keypoint_head,
}
LAZY = {
    "mask": _lazy_mask,
    "keypoint": _lazy_keypoint,
    "cascade": _lazy_cascade,
    "c4": _lazy_c4,
}


@pytest.mark.parametrize("roi_batch", ROI_BATCHES, ids=["object", "LazyCall"])
@pytest.mark.parametrize("kind", LAZY)
def test_lazy_heads_equal_those_of_a_cfg(kind, roi_batch):
    heads = instantiate(LAZY[kind](roi_batch))
    assert {bn.layout.settings for bn in roi_bn_layers(heads)} == {NormalizationBatch(**SETTING)}
    expected = build(config(kind, **SETTING))
    heads.load_state_dict(randomized(expected).state_dict())
    torch.testing.assert_close(Images().train(heads), Images().train(expected))


@pytest.mark.parametrize("kind", LAZY)
def test_without_roi_batch_a_worker_is_the_batch(kind):
    heads = instantiate(LAZY[kind](None))
    expected = build(config(kind))
    heads.load_state_dict(randomized(expected).state_dict())
    torch.testing.assert_close(Images().train(heads), Images().train(expected))


def test_wrong_batch_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="'gpu'; it must be one of images, worker, shuffled, glob"):
        instantiate(L(NormalizationBatch)(batch="gpu"))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("norm", ["SyncBN", ""])
def test_a_batch_that_a_norm_would_ignore_is_refused(head, norm):
    lazy = HEADS[head](ROI_BATCHES[0])
    lazy.conv_norm = norm
    with pytest.raises(ValueError, match=f"conv_norm is '{norm}', which does not follow roi_batch"):
        instantiate(lazy)
    lazy.roi_batch = None
    assert not roi_bn_layers(instantiate(lazy))


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_of_another_kind_is_refused(head):
    with pytest.raises(ValueError, match="roi_batch is 'shuffled'; it must be a NormalizationBat"):
        instantiate(HEADS[head]("shuffled"))
