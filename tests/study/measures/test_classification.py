"""Errors under kinds of statistics, and the moving averages kept beside a run, by closed forms."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model

from bn_detect.study.measures import averages
from bn_detect.study.measures.averages import FollowAverages
from bn_detect.study.measures.classification import (
    MEASURE,
    ONE_BATCH,
    TrainingError,
    check_classifier,
    classification_error,
    error,
    in_batches,
    precise,
)
from bn_detect.study.measures.same_class import FollowErrors, same_class_batches
from tests.configs.test_configs import load


def classifier(**roi_bn):
    cfg = load("digits/Base-digits.yaml")
    for key, value in roi_bn.items():
        cfg.MODEL.ROI_BN[key] = value
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.linear.weight)
    return model


def images(number: int = 20) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (number, 1, 32, 32), generator=generator)
    return [{"image": p * (i % 4) // 3, "label": i % 10} for i, p in enumerate(pixels)]


def predictions(model, batches) -> list[int]:
    with torch.no_grad():
        return [int(p["scores"].argmax()) for batch in batches for p in model(batch)]


def test_errors_under_mini_batches_are_those_of_the_groups_alone():
    model = classifier()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = error(model, in_batches(images(), 8), images_per_group=4)
    alone = classifier().train()
    wrong = 0
    for group in in_batches(images(), 4):
        x = (torch.stack([d["image"] for d in group]) - 78.0) / 90.0
        with torch.no_grad():
            guesses = alone._network(x).argmax(1)
        wrong += sum(int(g) != d["label"] for g, d in zip(guesses, group, strict=True))
    assert found == 100 * wrong / 20
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_precise_statistics_are_those_of_whole_batches_and_leave_no_trace():
    model = classifier(BATCH="images", IMAGES_PER_GROUP=2)
    unchanged = predictions(model.eval(), in_batches(images()))
    first = model.backbone.stem.conv1.norm
    with precise(model, in_batches(images(), 10), **ONE_BATCH):
        x = (torch.stack([d["image"] for d in images()]) - 78.0) / 90.0
        conv = model.backbone.stem.conv1
        seen = torch.nn.functional.conv2d(x, conv.weight, stride=2, padding=3)
        torch.testing.assert_close(first.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
        assert predictions(model, in_batches(images())) != unchanged
    assert predictions(model, in_batches(images())) == unchanged
    assert model.image_layout.settings.batch == "images"


def test_the_batch_of_a_precise_bn_pass_is_an_option():
    model = classifier(BATCH="images", IMAGES_PER_GROUP=2).eval()
    seen = images(150)
    subject = SimpleNamespace(
        model=model, cfg=load("digits/Base-digits.yaml"), images=lambda _: seen
    )
    options = {"errors": ["val_precise"], "precise_batches": [3, 150]}
    parts = classification_error(subject, options, {})
    found = {key: value for part in parts for key, value in part.items()}
    assert sorted(found) == ["val_precise", "val_precise_150", "val_precise_3"]
    batches = {size: [seen[i : i + size] for i in range(0, 150, size)] for size in (3, 64, 150)}
    for size, key in ((3, "val_precise_3"), (64, "val_precise"), (150, "val_precise_150")):
        with precise(model, batches[size], **ONE_BATCH):
            assert found[key] == error(model, in_batches(seen))
    assert {c.key for c in MEASURE.all_columns(options)} >= set(found)
    with pytest.raises(ValueError, match=r"precise_batches.*0"):
        check_classifier(subject.cfg, model, {"precise_batches": [0]})


def test_errors_over_training_are_kept_and_resumed():
    model = classifier(BATCH="worker", VIRTUAL_WORKERS=2)
    hook = FollowErrors(images(), images(40), batch=8, workers=2)
    for step in range(12):
        if step == 7:
            before = hook.state_dict()
            hook = FollowErrors(images(), images(40), batch=8, workers=2)
            hook.load_state_dict(before)
        hook.trainer = Loop(model, 12)
        hook.trainer.iter = step
        hook.after_step()
    rows = hook.result["errors"]
    assert [row[0] for row in rows] == [2, 4, 6, 8, 10, 12]
    with precise(model, [images()], **ONE_BATCH):
        assert {row[1] for row in rows} == {error(model, in_batches(images(40)))}
    one_class = same_class_batches(images(40), 8, 2)
    assert {row[2] for row in rows} == {error(model, one_class, images_per_group=4)}


class Loop:
    """As much of a trainer as the hook looks at."""

    def __init__(self, model, max_iter: int) -> None:
        self.model, self.max_iter, self.iter = model, max_iter, 0


def test_all_moving_averages_come_from_one_run(monkeypatch):
    monkeypatch.setattr(averages, "SAMPLES", (4, 8))
    monkeypatch.setattr(averages, "CHECKS", 2)
    model = classifier()
    hook = FollowAverages(images(), in_batches(images()))
    hook.trainer = Loop(model, 6)
    hook.before_train()
    batches = in_batches(images(), 3)
    for step, batch in enumerate(batches[:6]):
        hook.trainer.iter = step
        model._network((torch.stack([d["image"] for d in batch]) - 78.0) / 90.0)
        hook.after_step()

    for number, momentum in enumerate(averages.MOMENTA):
        torchs = classifier()
        for layer in torchs.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = momentum
        for batch in batches[:6]:
            torchs._network((torch.stack([d["image"] for d in batch]) - 78.0) / 90.0)
        last = [m for m in torchs.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
        assert hook.result["means"][-1][2 + number] == pytest.approx(
            last.running_mean[0].item(), rel=1e-4
        )
        assert hook.result["errors"][-1][1 + number] == error(torchs, in_batches(images()))
    assert [row[0] for row in hook.result["means"]] == [1, 2, 3, 4, 5, 6]
    assert [row[0] for row in hook.result["errors"]] == [3, 6]
    assert [row[0] for row in hook.result["means"] if row[-1] is not None] == [3, 6]
    assert {when: sorted(found) for when, found in hook.result["samples"].items()} == {
        "half": ["4", "8"],
        "end": ["4", "8"],
    }


def test_batches_of_one_class_are_as_in_training():
    (batch,) = same_class_batches(images(), 16, 2)
    labels = [d["label"] for d in batch]
    assert len(labels) == 16 and len(set(labels[:8])) == len(set(labels[8:])) == 1


class Storage:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def latest(self) -> dict:
        return {"classifier/error": (float(self._loop.iter), self._loop.iter)}


@pytest.mark.parametrize("killed_at", [None, 7, 9])
def test_the_training_error_is_that_of_the_last_part_of_a_resumed_run_too(killed_at):
    hook = TrainingError(0.3)
    for step in range(10):
        if step == killed_at:
            hook, before = TrainingError(0.3), hook
            hook.load_state_dict(before.state_dict())
        hook.trainer = Loop(None, 10)
        hook.trainer.iter, hook.trainer.storage = step, Storage(hook.trainer)
        hook.after_step()
    assert hook.result == {"training": 8.0}
