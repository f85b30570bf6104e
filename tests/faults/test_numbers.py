"""Values that are not finite, or hard on float32."""

import copy

import pytest
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from bn_detect import update_population_stats
from bn_detect.engine.step_guard import StepGuard, guarded
from bn_detect.layers import (
    LevelBatchNorm2d,
    NormalizationBatch,
    RoIBatchNorm2d,
    RoILayout,
    grouped_batch_norm,
)
from bn_detect.population.averaging import average_running_statistics
from bn_detect.runtime.checkpointer import AtomicCheckpointer
from tests.helpers.ranks import run_ranks
from tests.layers.reference import EPS, grouped_reference

HUGE = 3e38


def features(kind: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(6, 3, 4, 4), of which one RoI and channel is spoiled."""
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    if kind == "float16 overflow":
        return (x.half() * 6e4).half()  # as a convolution under autocast leaves it
    x[4, 1] = {"inf": torch.inf, "NaN": torch.nan, "values near the largest float32": HUGE}[kind]
    x[4, 1, 0] *= -1
    return x


class Model(nn.Module):
    """Three BN layers, of which the second sees features that a test may spoil."""

    def __init__(self, spoilt: torch.Tensor | None = None) -> None:
        super().__init__()
        self.late = RoIBatchNorm2d(3)  # called last: the order of calls is what counts
        self.first, self.second, self.spoilt = nn.BatchNorm2d(3), RoIBatchNorm2d(3), spoilt

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.first(x)
        if self.spoilt is not None:
            x = x + self.spoilt.to(x)
        x = self.second(x)
        return {"loss": self.late(x).square().mean(), "fine": self.first.weight.sum()}


@pytest.mark.parametrize(
    "kind", ["inf", "NaN", "values near the largest float32", "float16 overflow"]
)
@pytest.mark.parametrize("batch", ["worker", "images"])
@pytest.mark.fault(
    "{kind} in the features of a RoI, batch {batch}",
    should="the moving average takes in nothing of it; with other groups it goes on with those",
)
def test_moving_average(kind, batch, happened):
    layer = RoIBatchNorm2d(3, layout=RoILayout(NormalizationBatch(batch)))
    layer.layout.record([3, 3])
    layer(torch.randn(6, 3, 4, 4))
    before = copy.deepcopy(dict(layer.named_buffers()))
    x = features(kind)
    layer.layout.record([3, 3])
    layer(x)
    after = dict(layer.named_buffers())
    assert all(value.isfinite().all() for value in after.values()) and not layer.last_finite
    every = kind == "float16 overflow"  # which is in both images
    if batch == "worker" or every:
        assert torch.equal(after["running_mean"], before["running_mean"])
        happened("unchanged")
    else:
        # Of two groups one counts: with half the weight, and so against 1 - 0.1 of the old.
        weight = 0.05 / (0.9 + 0.05)
        clean = x[:3].mean((0, 2, 3))
        expected = before["running_mean"].lerp(clean, weight)
        torch.testing.assert_close(after["running_mean"], expected, rtol=1e-5, atol=1e-6)
        happened("the other image's statistics, with their own weight")


@pytest.mark.fault(
    "NaN in one level of a layer that levels share, with the population {population}",
    should="nothing of it is kept",
)
@pytest.mark.parametrize("population", ["shared", "level"])
def test_levels(population, happened):
    layer = LevelBatchNorm2d(3, 2, batch="level", population=population)
    layer([torch.randn(2, 3, 4, 4), features("NaN")])
    assert layer.running_mean.isfinite().all() and layer.running_var.isfinite().all()
    changed = layer.running_mean.ne(0).reshape(-1, 3).any(1).tolist()
    assert changed == ([True] if population == "shared" else [True, False])
    assert not layer.last_finite
    happened("the other level takes its step")


@pytest.mark.fault("NaN reaches a layer during PreciseBN", should="it keeps its statistics; told")
def test_precise_bn(happened, caplog):
    model = Model(features("NaN"))
    report = update_population_stats(model, [torch.randn(6, 3, 4, 4)] * 2, 2, progress=False)
    assert report.not_finite == ["late", "second"] and report.not_reached == []
    assert model.first.running_mean.ne(0).any()
    assert model.second.running_mean.eq(0).all() and model.second.running_var.eq(1).all()
    assert "late, second" in caplog.messages[-1] and "not finite" in caplog.messages[-1]
    assert "not finite" in str(report)
    happened(caplog.messages[-1])


@pytest.mark.fault("{kind} in the features of one step", should="training ends; the layer is named")
@pytest.mark.parametrize("kind", ["inf", "NaN", "float16 overflow"])
def test_loss_guard(kind, tmp_path, happened):
    model = Model()
    trainer = guarded(SimpleTrainer)(
        model, [torch.randn(6, 3, 4, 4)] * 9, torch.optim.SGD(model.parameters(), 0.1)
    )
    guard = StepGuard(model, AtomicCheckpointer(model, str(tmp_path)))
    trainer.guard = guard
    trainer.register_hooks([guard])
    weights: list[torch.Tensor] = []

    def spoil() -> None:
        if trainer.iter == 3:
            model.spoilt = features(kind)
            weights.extend(p.detach().clone() for p in model.parameters())

    guard.before_step = spoil
    with pytest.raises(FloatingPointError) as error:
        trainer.train(0, 9)
    text = "iteration 3: the loss is not finite on rank 0 (loss nan, fine 3); the first BatchNorm "
    text += "layer whose statistics are not finite is second."
    assert text in str(error.value).replace(f"fine {model.first.weight.sum():.3g}", "fine 3")
    assert all(map(torch.equal, weights, (p.detach() for p in model.parameters())))
    happened(str(error.value))


def guard_on_rank(rank: int, world_size: int) -> str:
    model = Model(features("NaN") if rank == 1 else None)
    trainer = guarded(SimpleTrainer)(
        model, [torch.randn(6, 3, 4, 4)] * 9, torch.optim.SGD(model.parameters(), 0.1)
    )
    trainer.guard = StepGuard(model, AtomicCheckpointer(model))
    trainer.register_hooks([trainer.guard])
    try:
        trainer.train(0, 9)
    except FloatingPointError as error:
        return str(error)
    return "no error"


def averaged_on_rank(rank: int, world_size: int) -> list[torch.Tensor]:
    layers = nn.Sequential(RoIBatchNorm2d(2), nn.BatchNorm2d(2))
    for layer in layers:
        layer.running_mean.fill_(1.0 + rank)
        if rank == 1:
            layer.running_var[1] = torch.nan
    average_running_statistics(layers)
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]


def on_rank(rank: int, world_size: int) -> tuple:
    return guard_on_rank(rank, world_size), averaged_on_rank(rank, world_size)


@pytest.fixture(scope="module")
def ranks() -> list[tuple]:
    return run_ranks(on_rank, 2)


@pytest.mark.fault("NaN on rank 1 of 2", should="both end at that step, and name rank and layer")
def test_loss_guard_on_ranks(ranks, happened):
    text = "iteration 0: the loss is not finite on rank 1"
    for message, _ in ranks:
        assert message.startswith(text) and "statistics are not finite is second" in message
    happened(f"on both ranks: {text}")


@pytest.mark.fault(
    "the running statistics of rank 1 are NaN when the ranks are averaged",
    should="both ranks get those of rank 0",
)
def test_average(ranks, happened):
    for _, buffers in ranks:
        assert [b.tolist() for b in buffers] == [[1.0, 1.0], [1.0, 1.0]] * 2
    happened("rank 0's on both")


@pytest.mark.fault(
    "a checkpoint would hold running statistics that are not finite",
    should="it is not written; the layer is named, the file before it stays",
)
def test_checkpoint(tmp_path, happened):
    model = Model()
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    model.first.running_var[1] = torch.inf
    with pytest.raises(FloatingPointError, match="statistics of first are not finite") as error:
        checkpointer.save("model_0000002")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    happened(str(error.value))


NUMBERS = {
    "constant features (variance 0)": (5.0, 0.0, 1e-6),
    "a mean of 1e6 with a spread of 1": (1e6, 1.0, 0.1),
    "a mean of 1e18 with a spread of 1e16": (1e18, 1e16, 1e-3),
    "a spread of 1e-20": (0.0, 1e-20, 1e-6),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.fault("{name}", should="finite, and what float64 gives up to the input's rounding")
def test_hard_numbers(name, happened):
    mean, std, tolerance = NUMBERS[name]
    generator = torch.Generator().manual_seed(0)
    x = (mean + std * torch.randn(8, 3, 5, 5, generator=generator, dtype=torch.float64)).float()
    group = torch.arange(8) % 2
    y, *_ = grouped_batch_norm(x, None, None, group, 2, EPS)
    expected, *_ = grouped_reference(x.double(), None, None, group, 2)
    assert y.isfinite().all()
    error = (y - expected).abs().max().item()
    assert error <= tolerance
    happened(f"largest error {error:.1e}")
