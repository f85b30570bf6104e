"""The hook: when it runs, what checkpoints and evaluations see of it, and its settings."""

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.engine import SimpleTrainer, hooks
from torch import nn

from bn_detect.commands.train import main
from bn_detect.engine import FreezeBN, PreciseBN
from bn_detect.population import update_population_stats
from bn_detect.population.precise_bn import ROI_SOURCES

from ..helpers.in_process import Trainer, assert_same_bits, checkpoint, config, statistics, trained

PRECISE = {"TEST__PRECISE_BN__ENABLED": True, "TEST__PRECISE_BN__NUM_ITER": 2}


@pytest.mark.parametrize("source", ROI_SOURCES)
def test_checkpoint_and_evaluation_see_the_same_statistics(datasets, tmp_path, source):
    cfg = config(
        datasets,
        tmp_path,
        TEST__EVAL_PERIOD=2,
        SOLVER__CHECKPOINT_PERIOD=2,
        TEST__PRECISE_BN__ROI_SOURCE=source,
        **PRECISE,
    )
    trainer = trained(cfg)
    assert list(trainer.evaluated) == [2, 4]
    for done, name in ((2, "model_0000001"), (4, "model_final")):
        state = checkpoint(tmp_path, name)
        assert_same_bits(statistics(state), trainer.evaluated[done])
        # They are those of a pass over the weights in the checkpoint.
        model = Trainer.build_model(cfg)
        model.load_state_dict(state)
        loader = Trainer.build_population_loader(cfg, cfg.SEED)
        report = update_population_stats(model, loader, 2, roi_source=source, progress=False)
        # The RoIs of training are drawn at random.
        most = 0.3 if source == "train" else 0
        assert all(layer.mean_shift.abs().max() <= most + 1e-6 for layer in report.layers)
        if source == "test":
            assert_same_bits(statistics(model.state_dict()), trainer.evaluated[done])


def test_groups_beyond_a_step_make_the_batches_of_a_pass_larger(datasets, tmp_path):
    cfg = config(datasets, tmp_path, TEST__PRECISE_BN__IMAGES_PER_GROUP=5)
    assert cfg.SOLVER.IMS_PER_BATCH < 5
    assert len(next(iter(Trainer.build_population_loader(cfg, 1)))) == 5
    cfg.TEST.PRECISE_BN.IMAGES_PER_GROUP = 1
    assert len(next(iter(Trainer.build_population_loader(cfg, 1)))) == cfg.SOLVER.IMS_PER_BATCH


class Passes(hooks.HookBase):
    """Records after which iterations a statistic jumped."""

    def __init__(self, monkeypatch) -> None:
        self.done: list[int] = []

        def update(*args, **kwargs):
            self.done.append(self.trainer.iter + 1)
            return update_population_stats(*args, **kwargs)

        monkeypatch.setattr("bn_detect.engine.hooks.update_population_stats", update)


@pytest.mark.parametrize(
    ("period", "evaluation", "expected"),
    [(0, 0, [5]), (0, 2, [2, 4, 5]), (3, 2, [3, 5]), (5, 0, [5])],
)
def test_period(datasets, tmp_path, monkeypatch, period, evaluation, expected):
    keys = {"TEST__PRECISE_BN__PERIOD": period, "TEST__EVAL_PERIOD": evaluation}
    passes = Passes(monkeypatch)
    trained(config(datasets, tmp_path, SOLVER__MAX_ITER=5, **keys, **PRECISE), passes)
    assert passes.done == expected


def test_a_pass_does_not_change_training(datasets, tmp_path):
    """Only moving averages differ; every random number is as without it."""
    plain = trained(config(datasets, tmp_path / "plain", MODEL__ROI_BN__BATCH="shuffled"))
    keys = {"TEST__PRECISE_BN__PERIOD": 1, "MODEL__ROI_BN__BATCH": "shuffled"}
    precise = trained(config(datasets, tmp_path / "precise", **keys, **PRECISE))
    weights = [dict(t.model.named_parameters()) for t in (plain, precise)]
    assert_same_bits(*weights)
    ours, theirs = (statistics(t.model.state_dict()) for t in (plain, precise))
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours)


def test_only_the_modules_asked_for(datasets, tmp_path):
    plain = trained(config(datasets, tmp_path / "plain"))
    keys = {"TEST__PRECISE_BN__MODULES": ["roi_heads.box_head.conv2"]}
    precise = trained(config(datasets, tmp_path / "precise", **keys, **PRECISE))
    ours, theirs = (statistics(t.model.state_dict()) for t in (plain, precise))
    changed = {name.rsplit(".", 2)[0] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {"roi_heads.box_head.conv2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("TEST.PRECISE_BN.ROI_SOURCE val", "ROI_SOURCE is 'val'; it must be one of train, test"),
        (
            "TEST.PRECISE_BN.ENABLED True TEST.PRECISE_BN.NUM_ITER 0",
            "TEST.PRECISE_BN.NUM_ITER is 0; it must be at least 1",
        ),
        (
            "MODEL.ROI_BN.FREEZE_ITER 3 MODEL.ROI_BN.TEST_STATS minibatch",
            "MODEL.ROI_BN.FREEZE_ITER is 3 with TEST_STATS 'minibatch'",
        ),
    ],
)
def test_settings_that_cannot_work(options, message, capsys):
    file = "configs/neon/faster_rcnn_lean_FPN_worker.yaml"
    assert main(["--config-file", file, "MODEL.DEVICE", "cpu", *options.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("TEST.PRECISE_BN.MODULES", PRECISE),
        ("MODEL.ROI_BN.FREEZE_MODULES", {"MODEL__ROI_BN__FREEZE_ITER": 1}),
    ],
)
def test_modules_that_match_nothing(datasets, tmp_path, key, more):
    keys = {key.replace(".", "__"): ["roi_heads.mask_head"], **more}
    with pytest.raises(ValueError, match=f"{key}: modules: 'roi_heads.mask_head' matches no Batch"):
        Trainer(config(datasets, tmp_path, **keys))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"build_loader": [torch.zeros(2, 3)]}, "build_loader is a list; .* say lambda: loader"),
        ({"num_iters": 0}, "num_iters is 0; it must be at least 1"),
        ({"roi_source": "val"}, "roi_source is 'val'; it must be one of train, test"),
    ],
)
def test_what_no_pass_can_use_is_refused_when_the_hook_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        PreciseBN(nn.BatchNorm1d(3), **{"build_loader": list, "num_iters": 1, **settings})


class Regression(nn.Module):
    """Any model that returns a dict of losses."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.module = nn.Linear(3, channels)  # not a wrapper, whatever its name
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.bn(self.module(batch)).square().mean()}


def test_lazy_config_and_detectron2s_own_trainer():
    """The hooks in a script with LazyConfig, which has neither `BNTrainer` nor a CfgNode."""
    torch.manual_seed(0)
    batches = [torch.randn(8, 3) for _ in range(4)]

    model = instantiate(LazyCall(Regression)(channels=5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = SimpleTrainer(model, batches * 10, optimizer)
    precise_bn = LazyCall(PreciseBN)(
        model=model, build_loader=lambda: batches, num_iters=4, period=2, roi_source="train"
    )
    precise_bn = instantiate(precise_bn)
    seen = []
    trainer.register_hooks(
        [
            FreezeBN(model, 4, modules=["bn"], precise_bn=precise_bn),
            precise_bn,
            hooks.EvalHook(2, lambda: seen.append(model.bn.running_mean.clone())),
        ]
    )
    trainer.train(0, 6)
    assert len(seen) == 3
    assert torch.equal(seen[1], seen[2])  # frozen from iteration 4 on, after which weights moved
    update_population_stats(model, batches, 4, progress=False)
    assert not torch.equal(model.bn.running_mean, seen[2])
