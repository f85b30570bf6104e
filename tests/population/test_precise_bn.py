"""Population statistics of one process, against closed forms."""

import logging

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout
from bn_detect.population import update_population_stats
from bn_detect.population.precise_bn import ROI_SOURCES

from .snapshot import Snapshot, assert_statistics, population

C = 4


def update(model: nn.Module, batches, num_iters: int | None = None, **kwargs):
    num_iters = len(batches) if num_iters is None else num_iters
    return update_population_stats(model, batches, num_iters, progress=False, **kwargs)


def gaussian(shape, mean=0.0, sigma=1.0, seed=0, dtype=torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (mean + sigma * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)


def unequal_batches(dtype=torch.float32) -> list[Tensor]:
    """Of unequal sizes and positions, whose means are far apart."""
    shapes = [(1, C, 3, 5), (6, C, 2, 2), (0, C, 4, 4), (3, C, 1, 1), (2, C, 8, 8)]
    return [gaussian(s, 3.0 * i, 1 + i, i, dtype) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("mean", "sigma"), [(0, 1), (-3, 20), (100, 1e-3), (100, 1e-4)])
def test_gaussian(mean, sigma, dtype):
    bn = nn.BatchNorm2d(C).to(dtype)
    batches = [gaussian((5, C, 20, 20), mean, sigma, i, dtype) for i in range(10)]
    report = update(bn, batches)
    n = 10 * 5 * 20 * 20
    assert report.layers[0].samples == n and report.iterations == 10
    new_mean, new_var = report.layers[0].new_mean, report.layers[0].new_var
    rounding = torch.finfo(dtype).eps * mean  # of the data
    assert (new_mean - mean).abs().max() < 5 * sigma / n**0.5 + rounding
    assert (new_var / sigma**2 - 1).abs().max() < 5 * (2 / n) ** 0.5 + (rounding / sigma) ** 2
    assert_statistics(bn, batches, rtol=1e-6 if dtype == torch.float32 else 1e-9)


def test_some_channels_far_from_zero_and_broken_statistics_before():
    """torch's own moments are good for channels 0 and 1 only; NaN is not carried on."""
    bn = nn.BatchNorm2d(C)
    bn.running_mean.fill_(torch.nan)
    bn.running_var.fill_(torch.inf)
    shift = torch.tensor([0.0, 5, 1e3, 100])[:, None, None]
    scale = torch.tensor([1.0, 1, 1e-2, 1e-3])[:, None, None]
    batches = [shift + scale * gaussian((3, C, 9, 9), seed=i) for i in range(4)]
    update(bn, batches)
    _, var = population(batches)
    torch.testing.assert_close(bn.running_var.double(), var, rtol=1e-6, atol=0)
    assert_statistics(bn, batches, rtol=1e-6)


def test_statistics_that_the_layer_does_not_track():
    bn = nn.BatchNorm2d(C)
    bn.track_running_stats = False  # as code that freezes them for a while does
    batches = [gaussian((2, C, 4, 4), seed=i) for i in range(4)]
    update(bn, batches)
    assert_statistics(bn, batches)


def test_far_from_zero_in_float64():
    """Sums of squares would lose everything here: 1e6^2 + 1e-4^2 takes 20 digits."""
    bn = nn.BatchNorm2d(C).double()
    batches = [gaussian((3, C, 7, 7), 1e6, 1e-4, i, torch.float64) for i in range(4)]
    update(bn, batches)
    mean, var = population([b - 1e6 for b in batches])
    torch.testing.assert_close(bn.running_var, var, rtol=1e-6, atol=0)
    torch.testing.assert_close(bn.running_mean - 1e6, mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [RoIBatchNorm2d, nn.BatchNorm2d])
def test_unequal_batches_are_one_pass_on_all_values(layer, dtype):
    """The variance between batches included: it is most of it here."""
    bn = layer(C).to(dtype)
    batches = unequal_batches(dtype)
    report = update(bn, batches)
    assert_statistics(bn, batches, rtol=1e-6 if dtype == torch.float32 else 1e-12)
    within = torch.stack([b.double().transpose(0, 1).flatten(1).var(1) for b in batches if len(b)])
    assert (report.layers[0].new_var > 1.5 * within.mean(0)).all()

    one = RoIBatchNorm2d(C).to(dtype)
    all_values = torch.cat([b.transpose(0, 1).flatten(1) for b in batches], dim=1)
    update(one, [all_values.t().contiguous()[:, :, None, None]])
    torch.testing.assert_close(one.running_mean, bn.running_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.running_var, bn.running_var, rtol=1e-6, atol=0)


def roi_bn(batch: str) -> RoIBatchNorm2d:
    layout = RoILayout(NormalizationBatch(batch))
    layer = RoIBatchNorm2d(C, layout=layout)
    # The images of a batch: its first RoI, and the others.
    layer.register_forward_pre_hook(lambda _, args: layout.record([1, len(args[0]) - 1]))
    return layer


LAYERS = {
    "1d": (lambda: nn.BatchNorm1d(C), (5, C)),
    "1d, sequences": (lambda: nn.BatchNorm1d(C), (5, C, 7)),
    "2d": (lambda: nn.BatchNorm2d(C), (5, C, 3, 4)),
    "3d": (lambda: nn.BatchNorm3d(C), (5, C, 2, 3, 4)),
    "sync": (lambda: nn.SyncBatchNorm(C), (5, C, 3, 4)),
    "naive sync": (lambda: NaiveSyncBatchNorm(C), (5, C, 3, 4)),
    "naive sync N": (lambda: NaiveSyncBatchNorm(C, stats_mode="N"), (5, C, 3, 4)),
    "images": (lambda: roi_bn("images"), (5, C, 3, 4)),
    "worker": (lambda: roi_bn("worker"), (5, C, 3, 4)),
    "shuffled": (lambda: roi_bn("shuffled"), (5, C, 3, 4)),
    "global": (lambda: roi_bn("global"), (5, C, 3, 4)),
    "cumulative": (lambda: nn.BatchNorm2d(C, momentum=None), (5, C, 3, 4)),
    "no weight": (lambda: nn.BatchNorm2d(C, affine=False), (5, C, 3, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("source", ROI_SOURCES)
@pytest.mark.parametrize("training", [True, False])
def test_kinds_of_layers(kind, source, training):
    make, shape = LAYERS[kind]
    layer = make().train(training)
    before = Snapshot(layer)
    batches = [gaussian(shape, i, 1 + i, seed=i) for i in range(3)]
    report = update(layer, batches, roi_source=source)
    assert_statistics(layer, batches)
    before.assert_unchanged(statistics=False)
    assert report.layers[0].samples == 3 * batches[0][:, 0].numel()
    assert not report.not_reached


def test_memory_formats_and_dtypes():
    bn = nn.BatchNorm2d(C)
    batches = [gaussian((3, C, 5, 6), i, seed=i) for i in range(3)]
    update(bn, [b.contiguous(memory_format=torch.channels_last) for b in batches])
    assert_statistics(bn, batches)
    update(bn, [gaussian((3, 2 * C, 5, 12), i, seed=i)[:, ::2, :, ::2] for i in range(3)])
    assert_statistics(
        bn, [gaussian((3, 2 * C, 5, 12), i, seed=i)[:, ::2, :, ::2] for i in range(3)]
    )
    with torch.autocast("cpu", torch.bfloat16):
        update(bn, [b.bfloat16() for b in batches])
    assert_statistics(bn, [b.bfloat16() for b in batches])


class Reused(nn.Module):
    """A layer that is called three times, as a shared head is; once by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(C)

    @staticmethod
    def calls(x: Tensor) -> list[Tensor]:
        return [x, 2 * x[..., ::2] + 1, -x[:, :, :1]]

    def forward(self, x: Tensor) -> None:
        first, second, third = self.calls(x)
        self.bn(first), self.bn(second), self.bn(input=third)


def test_layer_used_three_times_counts_three_times():
    model, batches = Reused(), [gaussian((2, C, 4, 4), i, seed=i) for i in range(3)]
    report = update(model, batches)
    calls = [call for batch in batches for call in Reused.calls(batch)]
    assert_statistics(model.bn, calls)
    assert report.layers[0].samples == sum(call[:, 0].numel() for call in calls)


class Partly(nn.Module):
    """Layers that are reached, reached with nothing, with a single value, and never."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.unreached = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
        self.empty, self.single = RoIBatchNorm2d(C), RoIBatchNorm2d(C)
        self.empty_torch = nn.BatchNorm2d(C)
        self.frozen = FrozenBatchNorm2d(C)
        self.calls = 0

    def forward(self, x: Tensor) -> None:
        self.reached(self.frozen(x))
        self.empty(x[:0])
        self.empty_torch(x[:0])
        if self.calls == 0:
            self.single(x[:1, :, :1, :1])
        self.calls += 1


def test_layers_that_no_value_reaches_keep_their_statistics(caplog):
    model = Partly()
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.fill_(0.5)
            module.running_var.fill_(2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [gaussian((2, C, 4, 4), seed=i) for i in range(2)]
    with caplog.at_level(logging.WARNING):
        report = update(model, batches)
    lost = ["unreached", "empty", "single", "empty_torch"]
    assert report.not_reached == lost
    for name in lost:
        assert any(name in record.message for record in caplog.records)
        row = next(line for line in str(report).splitlines() if line.split()[0] == name)
        assert row.split()[1:3] == ["not", "reached"]
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert changed == ["reached.running_mean", "reached.running_var"]
    assert [layer.name for layer in report.layers] == ["reached", *lost]  # FrozenBN is no matter
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["single"].samples == 1 and by_name["empty"].samples == 0
    assert by_name["empty"].mean_shift.abs().max() == by_name["empty"].log_var_ratio.max() == 0


def test_layers_asked_for_use_their_mini_batch():
    """In inference mode too: the second layer sees what the first one normalizes by the batch."""
    model = nn.Sequential(nn.BatchNorm2d(C), nn.Tanh(), nn.BatchNorm2d(C)).eval()
    batches = [gaussian((3, C, 4, 4), 7.0, 3.0, i) for i in range(3)]
    update(model, batches, roi_source="test")
    seen = [nn.functional.batch_norm(b, None, None, training=True).tanh() for b in batches]
    assert_statistics(model[2], seen)


def test_models_that_take_a_batch_otherwise():
    """By `forward`, as torchvision's detectors need it."""

    class Pair(nn.Sequential):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return super().forward(torch.cat([first, second]))

    model = Pair(nn.BatchNorm2d(C))
    batches = [(gaussian((1, C, 3, 3), i, seed=i), gaussian((2, C, 3, 3), seed=9)) for i in (0, 1)]
    update(model, batches, forward=lambda batch: model(*batch))
    assert_statistics(model[0], [torch.cat(batch) for batch in batches])
    with pytest.raises(TypeError):
        update(model, batches)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"modules": ["backbone"]}, "modules: 'backbone' matches no BatchNorm layer"),
        ({"roi_source": "val"}, "roi_source is 'val'; it must be one of train, test"),
        ({"num_iters": 0}, "num_iters is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        update(nn.BatchNorm2d(C), [], **{"num_iters": 1, **kwargs})


def test_fvcore_agrees_where_it_is_right():
    """It divides by n where torch's running_var divides by n - 1; unequal batches are fine."""
    torch.manual_seed(0)
    batches = [gaussian((2 + i, 3, 16, 16), 0.5 * i, seed=i) for i in range(4)]
    ours = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C))
    theirs = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C))
    theirs.load_state_dict(ours.state_dict())
    report = update(ours, batches)
    update_bn_stats(theirs, batches, 4)
    for i, layer in zip((1, 3), report.layers, strict=True):
        n = layer.samples
        torch.testing.assert_close(theirs[i].running_mean, ours[i].running_mean)
        torch.testing.assert_close(theirs[i].running_var * n / (n - 1), ours[i].running_var)


def test_fvcore_is_wrong_far_from_zero():
    ours, theirs = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
    batches = [gaussian((4, C, 16, 16), 100, 1e-3, i) for i in range(4)]
    update(ours, batches)
    update_bn_stats(theirs, batches, 4)
    _, var = population(batches)
    torch.testing.assert_close(ours.running_var.double(), var, rtol=1e-5, atol=0)
    assert (theirs.running_var / var - 1).abs().max() > 10


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", LAYERS)
def test_cuda(kind):
    make, shape = LAYERS[kind]
    model = nn.Sequential(make(), nn.Dropout()).cuda()
    state = torch.cuda.get_rng_state()
    batches = [gaussian(shape, 100, 1e-3, i).cuda() for i in range(3)]
    report = update(model, batches)
    assert_statistics(model[0].cpu(), [b.cpu() for b in batches])
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert report.layers[0].new_mean.device.type == "cpu"
