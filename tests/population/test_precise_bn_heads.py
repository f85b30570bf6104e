"""PreciseBN of whole detectors, with the RoIs of training and of inference."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from bn_detect.layers import RoIBatchNorm2d
from bn_detect.population import update_population_stats
from bn_detect.population.precise_bn import ROI_SOURCES
from tests.modeling.images import model_inputs
from tests.modeling.small import KINDS, config, randomized

from .snapshot import Recorder, Snapshot, assert_statistics

TOPK_TRAIN, TOPK_TEST, SAMPLED = 30, 9, 12
BATCHES = [model_inputs(images, seed) for seed, images in enumerate((2, 1, 3))]
IMAGES = 6


def detector(kind: str, backbone_norm: str = "") -> nn.Module:
    cfg = config(kind)
    m = cfg.MODEL
    m.RPN.POST_NMS_TOPK_TRAIN, m.RPN.POST_NMS_TOPK_TEST = TOPK_TRAIN, TOPK_TEST
    m.RPN.NMS_THRESH = 0.99
    m.ROI_HEADS.BATCH_SIZE_PER_IMAGE = SAMPLED
    if backbone_norm:
        m.BACKBONE.NAME, m.RESNETS.NORM, m.FPN.NORM = "build_lean_resnet_fpn_backbone", "BN", "BN"
        m.RESNETS.STEM_OUT_CHANNELS = m.RESNETS.RES2_OUT_CHANNELS = m.FPN.OUT_CHANNELS = 8
        m.ROI_HEADS.IN_FEATURES, m.RPN.IN_FEATURES = ["p2", "p3"], ["p3"]
    torch.manual_seed(0)
    return randomized(build_model(cfg))


class Heads:
    """Counts the RoIs of each head and looks for ground truth among them."""

    def __init__(self, model: nn.Module) -> None:
        heads = model.roi_heads
        self.proposals: list[int] = []  # per image, as they reach the RoI heads
        self.boxes: list[int] = []  # per image, as the box head pools them
        self.instances: list[int] = []  # per image, in the mask or keypoint head
        self.ground_truth: set[bool] = set()  # whether RoIs in those are labelled with it
        pooler = getattr(heads, "box_pooler", None) or heads.pooler
        model.proposal_generator.register_forward_hook(
            lambda _, args, out: self.proposals.extend(len(p) for p in out[0])
        )
        pooler.register_forward_pre_hook(
            lambda _, args: self.boxes.extend(len(boxes) for boxes in args[1])
        )
        for name in ("mask_head", "keypoint_head"):
            if hasattr(heads, name):
                getattr(heads, name).register_forward_pre_hook(self._see)

    def _see(self, _, args: tuple) -> None:
        self.instances += [len(instances) for instances in args[1]]
        self.ground_truth |= {instances.has("gt_boxes") for instances in args[1]}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("source", ROI_SOURCES)
@pytest.mark.parametrize("kind", KINDS)
def test_rois_of_training_and_of_inference(kind, source, training):
    model = detector(kind).train(training)
    inputs, heads = Recorder(model), Heads(model)
    before = Snapshot(model)
    report = update_population_stats(
        model, BATCHES, len(BATCHES), roi_source=source, progress=False
    )
    before.assert_unchanged(statistics=False)
    assert report.not_reached == []
    layers = dict(model.named_modules())
    for layer in report.layers:
        assert layer.samples == inputs.values(layer.name) > 0
        assert_statistics(layers[layer.name], inputs.inputs[layer.name])

    most = TOPK_TRAIN if source == "train" else TOPK_TEST
    assert len(heads.proposals) == IMAGES and max(heads.proposals) == most
    assert heads.ground_truth <= {source == "train"}
    samples = {layer.name: layer.samples for layer in report.layers}
    calls = heads.boxes
    if kind == "c4":
        assert samples["roi_heads.res5.0.conv1.norm"] == 4 * sum(calls)
        if source == "test":  # the detections go through res5 as well, for their masks
            calls = _first_calls(calls, 2)
            assert sum(heads.boxes) - sum(calls) == sum(heads.instances)
    elif kind == "cascade":
        calls = _first_calls(calls, 3)
    else:
        assert samples["roi_heads.box_head.conv1.norm"] == 16 * sum(calls)
    if source == "train":
        assert all(0 < n <= SAMPLED for n in calls)  # of proposals and ground truth
    else:
        assert calls == heads.proposals  # all of them, and nothing else
    for name, count in samples.items():
        if name.startswith(("roi_heads.mask_head", "roi_heads.keypoint_head")):
            assert count == sum(heads.instances) * (4 if kind == "c4" else 16)


def _first_calls(per_image: list[int], calls: int) -> list[int]:
    """What a module that is called so often per batch got in the first call of each."""
    kept = []
    for batch in BATCHES:
        kept += per_image[: len(batch)]
        per_image = per_image[calls * len(batch) :]
    return kept


@pytest.mark.parametrize("source", ROI_SOURCES)
def test_backbone_with_batchnorm(source):
    """A ResNet-FPN; only the layers asked for change."""
    every = detector("mask", "BN")
    inputs = Recorder(every)
    report = update_population_stats(every, BATCHES, 3, roi_source=source, progress=False)
    backbone = [n for n in inputs.inputs if n.startswith("backbone")]
    assert len(backbone) > 10 and len(report.layers) == len(inputs.inputs)
    layers = dict(every.named_modules())
    for name in inputs.inputs:
        assert_statistics(layers[name], inputs.inputs[name], rtol=2e-5)

    some = detector("mask", "BN")
    report = update_population_stats(
        some, BATCHES, 3, modules=("backbone", "roi_heads.box_head"), progress=False
    )
    mask = [m for m in some.roi_heads.mask_head.modules() if isinstance(m, RoIBatchNorm2d)]
    assert mask and all((m.running_mean == 0).all() and m.ema_weight == 1 for m in mask)
    names = {layer.name.rsplit(".", 3)[0] for layer in report.layers}
    assert not any("mask_head" in name for name in names)
    assert (some.backbone.bottom_up.stem.conv1.norm.running_mean != 0).all()


def test_layers_not_asked_for_normalize_as_inference_does():
    """With roi_source "test" and the heads asked for, proposals are those of plain inference."""
    model = detector("mask", "BN")
    update_population_stats(model, BATCHES, 3, progress=False)
    with torch.no_grad():
        plain = Heads(model)
        for batch in BATCHES:
            model.eval()(batch)
    heads = Heads(model)
    update_population_stats(
        model.train(), BATCHES, 3, modules=["roi_heads"], roi_source="test", progress=False
    )
    assert heads.proposals == plain.proposals[:IMAGES]
    assert heads.boxes == plain.boxes[:IMAGES]


@pytest.mark.parametrize("source", ROI_SOURCES)
def test_images_without_proposals_or_objects(source):
    """Nothing reaches the mask head; the box head still has its RoIs."""
    model = detector("mask")
    if source == "test":
        model.roi_heads.box_predictor.test_score_thresh = 1.1
    batches = [model_inputs(2, seed, objects=0) for seed in range(2)]
    report = update_population_stats(model, batches, 2, roi_source=source, progress=False)
    assert report.not_reached and all("mask_head" in name for name in report.not_reached)
    assert all(layer.updated for layer in report.layers if "box_head" in layer.name)
