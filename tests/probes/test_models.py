"""Every kind of model: the probes run, and on the RoIs that training uses."""

import copy
import math

import pytest
import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch import Tensor

from bn_detect import NormalizationBatch
from bn_detect.probes import companion_swap, cross_roi_jacobian, decomposition, statistics_probe
from bn_detect.probes.probing import probing
from tests.modeling.small import CLASSES, KINDS
from tests.population.snapshot import Snapshot

from .models import EVERY, TORCHVISION, batches, detector
from .swaps.test_swap import assert_exactly_0

BN_LAYERS = {"cascade": 2, "c4": 10, **dict.fromkeys([*TORCHVISION, "converted"], 4)}


@pytest.mark.parametrize("kind", EVERY)
def test_all_probes_run(kind):
    model, data = detector(kind), batches(kind, 3)
    before = Snapshot(model)
    layers = BN_LAYERS.get(kind, 2)
    if kind in KINDS:
        images = NormalizationBatch("images")
        swap = companion_swap(model, data, 3, partition=images)
        jacobian = cross_roi_jacobian(model, data, 2, partition=images)
        assert jacobian.other_images.mean == 0
    else:
        swap = companion_swap(model, data, 2, targets_per_image=2)
        jacobian = cross_roi_jacobian(model, data, 1, rois_per_batch=4)
        assert (jacobian.other_images.mean == 0) == (kind == "converted")  # its own: images
    assert swap.classification.change.mean != 0 and swap.box.change.mean != 0
    assert 0 < jacobian.same_image.mean < 1
    background = CLASSES if kind in KINDS else 0
    assert swap.background == background
    assert set(swap.per_roi["label"]) == {0, 1, 2, 3} - ({3} if background == 0 else set())

    report = decomposition(model, {"a": data}, 1, population_loader=data, population_batches=2)
    minibatch, population, precise = (row.loss for row in report.rows)
    assert minibatch != population != precise
    with probing(model, None, 0) as (head, _):
        assert len(head.bn_layers) == layers
    assert statistics_probe(model, data, 2, permutations=2).images == 4
    before.assert_unchanged()


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("box", ""),
        ("box", "GN"),
        ("mask", "GN"),
        ("cascade", "GN"),
        ("c4", "GN"),
        ("c4", "FrozenBN"),
    ],
)
def test_without_batch_statistics_it_is_exactly_0(kind, norm):
    report = companion_swap(detector(kind, norm), batches(kind, 2), 2, targets_per_image=3)
    assert_exactly_0(report)


@pytest.mark.parametrize("kind", ["box", "cascade", "c4", *TORCHVISION])
def test_losses_and_rois_are_those_of_training(kind):
    """One forward of the model in training, whose sampling leaves nothing to chance."""
    model, (batch,) = detector(kind), batches(kind, 1)
    heads = model.roi_heads
    if kind in KINDS:
        heads.batch_size_per_image = 1000
        heads.positive_fraction = 1.0
    else:
        heads.fg_bg_sampler.batch_size_per_image = 1000
        heads.fg_bg_sampler.positive_fraction = 1.0
    features: list[Tensor] = []

    def see(_, args: tuple) -> None:
        features.append(args[0].detach())

    trained = copy.deepcopy(model).train()
    trained.backbone.eval()  # where a probe leaves it
    layers = trained.roi_heads.res5 if kind == "c4" else trained.roi_heads.box_head
    (layers[0] if kind == "cascade" else layers).register_forward_pre_hook(see)
    with EventStorage(), torch.no_grad():
        losses = trained(batch) if kind in KINDS else trained(*batch)
    suffix = "_stage0" if kind == "cascade" else ""
    name = ("loss_cls" if kind in KINDS else "loss_classifier") + suffix

    with probing(model, NormalizationBatch("worker"), 0) as (head, groups), torch.no_grad():
        (rois,) = head.sample(batch)
        (group,) = groups(rois, 0)
        out = head(rois.features[group])
        loss = head.class_loss(out.logits, rois.labels).mean()
        foreground = rois.foreground.nonzero()[:, 0].tolist()
        box = sum(head.box_loss(out.row(i), rois, i) for i in foreground) / len(rois)
    (seen,) = features
    assert seen.shape == rois.features.shape and len(foreground) > 0
    # In any order: it is drawn.
    torch.testing.assert_close(
        seen.flatten(1).sum(1).sort().values, rois.features.flatten(1).sum(1).sort().values
    )
    assert loss.item() == pytest.approx(losses[name].item(), rel=1e-4)
    assert box == pytest.approx(losses[f"loss_box_reg{suffix}"].item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["box", TORCHVISION[0]])
def test_boxes_and_objects_are_those_of_the_images(kind):
    """Ground truth is among the RoIs, and known; torchvision's images are resized."""
    model, (batch,) = detector(kind), batches(kind, 1)
    if kind in KINDS:
        objects = [(x["instances"].gt_boxes.tensor, x["instances"].gt_classes) for x in batch]
    else:
        model.transform.min_size, model.transform.max_size = (96,), 128
        objects = [(target["boxes"], target["labels"]) for target in batch[1]]
    with probing(model, None, 0) as (head, _):
        rois, again = head.sample(batch, times=2)
    assert [x.tolist() for x in rois.objects] == [labels.tolist() for _, labels in objects]
    for sample in (rois, again):
        boxes = torch.tensor([sample.place(i)[1] for i in range(len(sample))])
        for number, (of_objects, labels) in enumerate(objects):
            here = sample.image == number
            distance, nearest = torch.cdist(boxes[here], of_objects).min(1)
            on_object = distance < 1e-3
            assert on_object.sum() >= 1 and not on_object.all()
            assert sample.ground_truth[here].tolist() == on_object.tolist()
            assert (sample.labels[here] == labels[nearest])[on_object].all()
    assert not torch.equal(rois.boxes, again.boxes)


def test_independent_classes():
    """Detectron2's sigmoid losses; a head without cross-talk gives 0, and BN does not."""
    for norm in ("GN", "BN"):
        model, data = detector("box", norm), batches("box", 2)
        model.roi_heads.box_predictor.use_sigmoid_ce = True
        report = companion_swap(model, data, 2)
        if norm == "GN":
            assert_exactly_0(report)
        assert set(report.per_roi["own_prediction"]) <= set(range(CLASSES + 1))
        assert cross_roi_jacobian(model, data, 1).itself.mean > 0.3
        with probing(model, None, 0) as (head, _), torch.no_grad():
            (rois,) = head.sample(data[0])
            outputs = head(rois.features)
            expected = FastRCNNOutputLayers.sigmoid_cross_entropy_loss(
                model.roi_heads.box_predictor, outputs.logits, rois.labels
            )
            assert head.class_loss(outputs.logits, rois.labels).mean().item() == pytest.approx(
                expected.item(), rel=1e-5
            )
            none = torch.full((1, CLASSES + 1), -1.0)
            assert head.predictions(none).item() == CLASSES
            none[0, 1] = 0.5
            assert head.predictions(none).item() == 1


def test_a_single_roi_has_no_companions():
    model, data = detector("box", batch="images"), batches("box", 2)
    model.roi_heads.batch_size_per_image = 1
    report = companion_swap(model, data, 2)
    assert report.rois == 0 and math.isnan(report.classification.change.mean)
    assert statistics_probe(model, data, 2, permutations=2).layers == ()
