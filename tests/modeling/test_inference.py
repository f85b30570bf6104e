"""What normalizes at inference: population statistics, or each image's own RoIs."""

import copy

import pytest
import torch
from torch import nn

from .images import Images
from .small import (
    KINDS,
    SETTINGS,
    assert_same_detections,
    bn_layers,
    build,
    config,
    randomized,
    setting_name,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def _trained(kind: str, **roi_bn) -> nn.Module:
    heads = randomized(build(config(kind, **roi_bn)))
    for seed in range(3):
        Images(range(4), seed=seed).train(heads)
    return heads


def _differ(a: list, b: list) -> bool:
    try:
        assert_same_detections(a, b, **CLOSE)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("test_stats", ["population", "minibatch"])
@pytest.mark.parametrize("setting", SETTINGS, ids=setting_name)
def test_an_image_does_not_depend_on_its_companions(setting, test_stats):
    heads = _trained("mask", test_stats=test_stats, **setting)
    alone = [Images([number]).detect(heads)[0] for number in range(5)]
    for batch in ([0, 1], [1, 0, 2], [3, 4], [4, 1, 3]):
        found = Images(batch).detect(heads)
        assert_same_detections(found, [alone[number] for number in batch], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_minibatch_statistics_are_those_of_the_image(kind):
    heads = _trained(kind, test_stats="minibatch")
    # torch's BatchNorm in training mode, in an otherwise evaluating parent, on a single image
    # (our keypoint head has no such parent).
    expected = build(config(kind, ours=kind == "keypoint"))
    expected.load_state_dict(heads.state_dict())
    population = _trained(kind).eval()
    found = Images(range(3)).detect(heads)
    for number in range(3):
        stock = copy.deepcopy(expected).eval()
        for bn in bn_layers(stock).values():
            bn.train()
        image = Images([number])
        stock.eval = lambda stock=stock: stock  # keeps the layers in training mode
        assert_same_detections([found[number]], image.detect(stock), **CLOSE)
        assert _differ([found[number]], image.detect(population))


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_group_do_depend_on_their_companions(kind):
    heads = _trained(kind, test_stats="minibatch", test_images_per_group=2)
    found = Images([0, 1, 2]).detect(heads)
    assert_same_detections(found[2:], Images([2]).detect(heads), **CLOSE)
    assert_same_detections(found[:2], Images([0, 1]).detect(heads), **CLOSE)
    assert _differ(found[:1], Images([0]).detect(heads))
    assert _differ(found[:1], Images([0, 2]).detect(heads)[:1])


@pytest.mark.parametrize("test_stats", ["population", "minibatch"])
@pytest.mark.parametrize("kind", KINDS)
def test_inference_changes_no_statistics(kind, test_stats):
    heads = _trained(kind, test_stats=test_stats)
    before = copy.deepcopy(dict(heads.state_dict()))
    Images(range(3)).detect(heads)
    torch.testing.assert_close(dict(heads.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("test_stats", ["population", "minibatch"])
@pytest.mark.parametrize("kind", KINDS)
def test_image_without_detections(kind, test_stats):
    heads = _trained(kind, test_stats=test_stats)
    alone = Images([1]).detect(heads)[0]
    images = Images(range(3))
    for number in (0, 2):
        images.proposals[number] = images.proposals[number][:0]
    found = images.detect(heads)
    assert [len(instances) for instances in found] == [0, len(alone), 0]
    assert_same_detections(found[1:2], [alone], **CLOSE)
    for instances in found:
        assert instances.get_fields().keys() == alone.get_fields().keys()
    images.proposals[1] = images.proposals[1][:0]
    assert [len(instances) for instances in images.detect(heads)] == [0, 0, 0]


def test_all_detections_below_the_threshold():
    """The mask head gets no RoI although the box head had some."""
    cfg = config("mask", test_stats="minibatch")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.999
    found = Images(range(2)).detect(build(cfg))
    assert [tuple(instances.pred_masks.shape) for instances in found] == [(0, 1, 8, 8)] * 2
