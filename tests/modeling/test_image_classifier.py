"""The image classifier: loss, predictions, and its normalization batch on ranks."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from bn_detect import add_bn_detect_config, set_iteration, update_population_stats
from bn_detect.layers import RoIBatchNorm2d
from bn_detect.modeling import BNImageClassifier
from tests.configs.test_configs import CONFIGS
from tests.engine import test_classification_evaluator as evaluator
from tests.helpers.ranks import run_ranks

CLASSES, IMAGES = 10, 8


def config(**keys) -> CfgNode:
    cfg = get_cfg()
    add_bn_detect_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "digits/Base-digits.yaml"))
    cfg.merge_from_list([x for k, v in keys.items() for x in (k.replace("__", "."), v)])
    return cfg


def classifier(**keys) -> BNImageClassifier:
    torch.manual_seed(0)
    model = build_model(config(**keys)).double()
    nn.init.normal_(model.linear.weight)
    return model


def inputs() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (IMAGES, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return [{"image": image, "label": i % CLASSES} for i, image in enumerate(images)]


@pytest.fixture(autouse=True)
def in_double(monkeypatch):
    """The pixels are made float32 before the network; here they are what the network is."""
    monkeypatch.setattr(BNImageClassifier, "_images", _images_in_double)


def _images_in_double(self, batched_inputs):
    x = torch.stack([d["image"] for d in batched_inputs]).double()
    return (x - self.pixel_mean) / self.pixel_std


def losses(model: BNImageClassifier, batch: list[dict]) -> dict:
    with EventStorage() as storage:
        found = model(batch)
        return {**found, "error": storage.latest()["classifier/error"][0]}


def test_loss_and_error_are_those_of_the_logits():
    model = classifier()
    found = losses(model, inputs())
    x = torch.stack([(d["image"].double() - 78) / 90 for d in inputs()])
    features = model.backbone(x)["res4"]
    logits = model.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))
    labels = torch.arange(IMAGES)
    expected = F.cross_entropy(logits.float(), labels)
    torch.testing.assert_close(found["loss_cls"], expected, rtol=1e-5, atol=1e-5)
    assert found["error"] == 100 * (logits.argmax(1) != labels).double().mean()


def test_predictions_need_no_labels_and_do_not_depend_on_the_batch():
    model = classifier()
    losses(model, inputs())
    model.eval()
    batch = [{"image": d["image"]} for d in inputs()]
    together = torch.stack([p["scores"] for p in model(batch)])
    alone = torch.stack([model([d])[0]["scores"] for d in batch])
    assert together.shape == (IMAGES, CLASSES)
    torch.testing.assert_close(together, alone)


def test_the_config_says_which_batch():
    keys = {"MODEL__ROI_BN__BATCH": "images", "MODEL__ROI_BN__IMAGES_PER_GROUP": 4}
    layers = [m for m in classifier(**keys).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) > 5 and all(type(m) is RoIBatchNorm2d for m in layers)
    (layout,) = {m.layout for m in layers}
    assert (layout.settings.batch, layout.settings.images_per_group) == ("images", 4)
    plain = classifier(MODEL__RESNETS__NORM="GN", MODEL__RESNETS__STEM_OUT_CHANNELS=32,
                       MODEL__RESNETS__RES2_OUT_CHANNELS=32)  # fmt: skip
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())


def test_stages_beyond_the_last_output_are_not_built():
    names = [n for n, _ in classifier().backbone.named_children()]
    assert names == ["stem", "res2", "res3", "res4"]


def test_images_of_several_sizes_are_refused(monkeypatch):
    monkeypatch.undo()
    model = classifier().float()
    batch = [{"image": torch.zeros(1, 32, s), "label": 0} for s in (32, 40)]
    with pytest.raises(ValueError, match=r"\(32, 32\), \(32, 40\).*INPUT.CROP.ENABLED"):
        losses(model, batch)


def step(model: BNImageClassifier, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Loss and gradients of a training step, and the running statistics."""
    set_iteration(model, 5)
    found = losses(model, batch)
    found["loss_cls"].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": found["loss_cls"].detach(), **grads, **dict(model.named_buffers())}


def test_precise_bn_moves_no_image(monkeypatch):
    """Layers see the images in their own order there, as the layout of the images says."""
    keys = {"MODEL__ROI_BN__BATCH": "shuffled", "MODEL__ROI_BN__EXCHANGE": "features"}
    model = classifier(**keys)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    update_population_stats(model, [inputs()], 1, progress=False)
    assert torch.equal(seen[0], model._images(inputs()))
    losses(model, inputs())
    assert not torch.equal(seen[1], seen[0])  # training moves them


def on_rank(rank: int, world_size: int) -> dict[str, dict]:
    BNImageClassifier._images = _images_in_double
    share = inputs()[rank * 4 : rank * 4 + 4]
    steps = {
        name: step(classifier(**keys), share)
        for name, keys in {
            **{b: {"MODEL__ROI_BN__BATCH": b} for b in ("worker", "shuffled", "global")},
            "features": {
                "MODEL__ROI_BN__BATCH": "shuffled",
                "MODEL__ROI_BN__EXCHANGE": "features",
            },
        }.items()
    }
    return {**steps, "errors": evaluator.on_rank(rank, world_size)}


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(on_rank, 2)


@pytest.mark.parametrize("batch", ["worker", "shuffled", "global", "features"])
def test_two_ranks_are_two_virtual_workers(ranks, batch):
    name = "shuffled" if batch == "features" else batch
    keys = {"MODEL__ROI_BN__BATCH": name, "MODEL__ROI_BN__VIRTUAL_WORKERS": 2}
    expected = step(classifier(**keys), inputs())
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)  # the loss is float32
    for key, value in expected.items():
        if "num_batches" not in key:
            close((ranks[0][batch][key] + ranks[1][batch][key]) / 2, value)


def test_ranks_count_errors_together(ranks):
    assert [found["errors"] for found in ranks] == [evaluator.evaluated(*evaluator.data()), {}]
