"""RetinaNet and RPN heads over feature levels: against Detectron2's, and one batch."""

import pytest
import torch
import torch.nn.functional as F
from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.config import LazyCall as L
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from bn_detect.configuration.check import check_run
from bn_detect.engine import BNTrainer
from bn_detect.layers import LevelBatchNorm2d
from bn_detect.modeling import BNRetinaNet, BNRetinaNetHead, BNRPNHead
from bn_detect.population import update_population_stats

from .images import model_inputs
from .level_heads import CHANNELS, CHOICES, CLOSE, SIZES, features, randomized, retinanet_head
from .small import CLASSES, config


def rpn_head(norm: str = "BN", conv_dims: tuple = (-1, -1), **choices) -> BNRPNHead:
    numbers = {"in_channels": CHANNELS, "num_anchors": 2, "conv_dims": conv_dims}
    return randomized(BNRPNHead(num_levels=len(SIZES), norm=norm, **numbers, **choices))


def tower(layers: list[nn.Module], xs: list[Tensor]) -> list[Tensor]:
    """Layer by layer over the levels, BN by torch's functions on what is one batch."""
    for layer in layers:
        if not isinstance(layer, LevelBatchNorm2d):
            xs = [layer(x) for x in xs]
            continue
        if layer.batch == "level":
            xs = [F.batch_norm(x, None, None, training=True) for x in xs]
        else:  # (N, C, all positions)
            whole = torch.cat([x.flatten(2) for x in xs], dim=2)
            parts = F.batch_norm(whole, None, None, training=True).split(
                [x[0, 0].numel() for x in xs], dim=2
            )
            xs = [part.view_as(x) for part, x in zip(parts, xs, strict=True)]
        per_level = layer.weight.dim() == 2
        scales = layer.weight if per_level else [layer.weight] * len(xs)
        shifts = layer.bias if per_level else [layer.bias] * len(xs)
        xs = [x * a[:, None, None] + b[:, None, None] for x, a, b in zip(xs, scales, shifts)]  # noqa: B905
    return xs


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(c.values()))
def test_retinanet_head_in_training(choices):
    head, xs = retinanet_head(**choices), features()
    expected = (
        tower([*head.cls_subnet, head.cls_score], xs),
        tower([*head.bbox_subnet, head.bbox_pred], xs),
    )
    torch.testing.assert_close(head(xs), expected, **CLOSE)


@pytest.mark.parametrize("conv_dims", [(-1,), (-1, 6)])
@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(c.values()))
def test_rpn_head_in_training(choices, conv_dims):
    head, xs = rpn_head(conv_dims=conv_dims, **choices), features()
    convs = [head.conv] if len(conv_dims) == 1 else list(head.conv)
    layers = []
    for conv in convs:
        plain = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1).double()
        plain.load_state_dict({"weight": conv.weight, "bias": conv.bias})
        layers += [plain, conv.norm, nn.ReLU()]
    expected = (
        tower([*layers, head.objectness_logits], xs),
        tower([*layers, head.anchor_deltas], xs),
    )
    torch.testing.assert_close(head(xs), expected, **CLOSE)


def test_everything_but_affine_per_level_is_detectron2s_head_with_bn():
    """Which counts calls to know the level."""
    ours = retinanet_head(batch="level", population="level", affine="shared")
    theirs = retinanet_head(cls=RetinaNetHead).train()
    state = theirs.state_dict()
    for key, value in ours.state_dict().items():
        prefix, part = key.rsplit(".", 1)
        if part.startswith("running"):
            for level in range(len(SIZES)):
                state[f"{prefix}.{level}.{part}"] = value[level]
        elif key in state:
            state[key] = value
    theirs.load_state_dict(state)
    for seed in range(2):
        torch.testing.assert_close(ours(features(seed=seed)), theirs(features(seed=seed)), **CLOSE)
    torch.testing.assert_close(ours.eval()(features(seed=5)), theirs.eval()(features(seed=5)))


@pytest.mark.parametrize("norm", ["", "GN32"])
def test_other_norms_are_the_parents(norm):
    def make_norm(channels: int) -> nn.Module:
        return nn.GroupNorm(2, channels)

    norm = make_norm if norm else ""
    ours, theirs = retinanet_head(norm), retinanet_head(norm, RetinaNetHead)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours(features()), theirs(features()))
    rpn = rpn_head(norm, conv_dims=(-1,))
    plain = randomized(StandardRPNHead(in_channels=CHANNELS, num_anchors=2, conv_dims=(-1,)))
    if not norm:
        assert rpn.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(rpn(features()), plain(features()))
    else:
        assert isinstance(rpn.conv.norm, nn.GroupNorm) and len(rpn(features())[0]) == len(SIZES)


def test_rpn_head_loads_a_checkpoint_without_norm():
    plain = StandardRPNHead(in_channels=CHANNELS, num_anchors=2, conv_dims=(-1, -1))
    missing = rpn_head().load_state_dict(plain.double().state_dict(), strict=False)
    assert not missing.unexpected_keys and all(".norm." in key for key in missing.missing_keys)


# Whole models.


def retinanet_config(norm: str = "SyncBN", **choices) -> CfgNode:
    cfg = config("box")
    m = cfg.MODEL
    m.META_ARCHITECTURE = "BNRetinaNet"
    m.RETINANET.IN_FEATURES, m.RETINANET.NUM_CLASSES = ["p0", "p1"], CLASSES
    m.RETINANET.NORM, m.RETINANET.NUM_CONVS = norm, 1
    m.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    set_choices(cfg, choices)
    return cfg


def rpn_config(norm: str = "SyncBN", **choices) -> CfgNode:
    cfg = config("box", norm="")
    m = cfg.MODEL
    m.RPN.IN_FEATURES, m.ANCHOR_GENERATOR.SIZES = ["p0", "p1"], [[16], [32]]
    m.RPN.HEAD_NAME, m.RPN.NORM = "BNRPNHead", norm
    set_choices(cfg, choices)
    return cfg


def set_choices(cfg: CfgNode, choices: dict) -> None:
    for key, value in choices.items():
        cfg.MODEL.LEVEL_BN[key.upper()] = value


@pytest.mark.parametrize("make", [retinanet_config, rpn_config])
@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(c.values()))
def test_trains_two_iterations_and_detects(make, choices):
    cfg = make(**choices)
    check_run(cfg, 2, BNTrainer, ())
    torch.manual_seed(0)
    model = build_model(cfg)
    layers = [m for m in model.modules() if isinstance(m, LevelBatchNorm2d)]
    assert len(layers) == (2 if make is retinanet_config else 1)
    assert {(m.batch, m.population, m.synchronized) for m in layers} == {
        (choices["batch"], choices["population"], True)
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(2):
        with EventStorage(step):
            losses = model.train()(model_inputs(seed=step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        assert all(loss.isfinite() for loss in losses.values())
    for name, layer in model.named_modules():
        if isinstance(layer, LevelBatchNorm2d):
            shapes = {k: v.dim() for k, v in layer.state_dict().items() if v.dim()}
            per_level = {"level": 2, "shared": 1}
            assert shapes["running_mean"] == per_level[choices["population"]]
            assert shapes["weight"] == per_level[choices["affine"]]
            for part in ("weight", "bias", "running_mean", "running_var"):
                changed = getattr(layer, part) != before[f"{name}.{part}"]
                assert changed.any(-1).all()  # those of each level
    report = update_population_stats(model, [model_inputs()], 1, progress=False)
    assert not report.not_reached
    found = model.eval()([{k: v for k, v in i.items() if k != "instances"} for i in model_inputs()])
    assert len(found) == 2 and all("instances" in each for each in found)


def test_lazy_config():
    model = model_zoo.get_config("common/models/retinanet.py").model
    head = {key: value for key, value in model.head.items() if key != "_target_"}
    model.head = L(BNRetinaNetHead)(**head, norm="SyncBN", batch="level", population="level")
    built = instantiate(model.head)
    layer = built.cls_subnet[1]
    assert isinstance(layer, LevelBatchNorm2d) and layer.num_levels == 5
    assert layer.synchronized and layer.running_mean.shape == (5, 256)


def test_norm_bn_is_of_the_worker_and_cfg_builds_our_head():
    model = build_model(retinanet_config("BN"))
    assert type(model) is BNRetinaNet and type(model.head) is BNRetinaNetHead
    assert not model.head.cls_subnet[1].synchronized


def wrong(make, **keys) -> CfgNode:
    cfg = make()
    cfg.merge_from_list([x for k, v in keys.items() for x in (f"MODEL.{k.replace('__', '.')}", v)])
    return cfg


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (
            wrong(retinanet_config, LEVEL_BN__BATCH="stage"),
            "MODEL.LEVEL_BN.BATCH is 'stage'; it must be one of shared, level",
        ),
        (
            wrong(retinanet_config, LEVEL_BN__AFFINE="level", RETINANET__NORM=""),
            "MODEL.LEVEL_BN.AFFINE level: set, but no head has BatchNorm over the feature",
        ),
        (
            wrong(retinanet_config, LEVEL_BN__BATCH="level", META_ARCHITECTURE="RetinaNet"),
            "use MODEL.META_ARCHITECTURE 'BNRetinaNet' with MODEL.RETINANET.NORM 'SyncBN'",
        ),
        (
            wrong(rpn_config, RPN__HEAD_NAME="StandardRPNHead"),
            "MODEL.RPN.HEAD_NAME is 'StandardRPNHead', which has no norm (MODEL.RPN.NORM is 'Sync",
        ),
    ],
)
def test_mistakes(cfg, said):
    with pytest.raises(ValueError) as caught:
        check_run(cfg, 2, BNTrainer, ())
    assert said in str(caught.value)
