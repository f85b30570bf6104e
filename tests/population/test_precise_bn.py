"""Population statistics of one process, against closed forms."""

import logging
import random

import numpy as np
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
    update(bn, whole_batches())
    assert_statistics(bn, whole_batches())


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


def test_report():
    bn = nn.BatchNorm2d(1)
    bn.running_mean.fill_(1.0)
    bn.running_var.fill_(9.0)
    layer = update(bn, [torch.tensor([4.0, 6.0, 8.0]).view(3, 1, 1, 1)] * 2).layers[0]
    new_var = 2 * 8 / 5
    assert layer.old_mean == 1 and layer.old_var == 9
    assert layer.new_mean == 6 and layer.new_var == pytest.approx(new_var)
    assert layer.mean_shift == pytest.approx(5 / new_var**0.5)
    assert layer.log_var_ratio == pytest.approx(np.log(new_var / 9))
    assert layer.standard_error == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"modules": ["backbone"]}, "modules: 'backbone' matches no BatchNorm layer; some are in"),
        ({"modules": ["head", "hea"]}, "modules: 'hea' matches no"),
        ({"modules": []}, "modules is empty"),
        ({"roi_source": "val"}, "roi_source is 'val'; it must be one of train, test"),
        ({"num_iters": 0}, "num_iters is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments(kwargs, message):
    model = nn.ModuleDict({"head": nn.Sequential(nn.BatchNorm2d(C))})
    with pytest.raises(ValueError, match=message):
        update(model, [], **{"num_iters": 1, **kwargs})


def test_no_layer_to_update():
    for model in (nn.Conv2d(1, 1, 1), FrozenBatchNorm2d(C)):
        with pytest.raises(ValueError, match="no BatchNorm layer with running statistics"):
            update(model, [], 1)
    with pytest.raises(ValueError, match="no BatchNorm layer with running statistics"):
        update(nn.BatchNorm2d(C, track_running_stats=False), [], 1)


class Whole(nn.Module):
    """Two stages, dropout, things that change in a forward, and a fault on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C, momentum=0.3), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(C, C, 1), RoIBatchNorm2d(C))
        self.head[2].layout.watch(self.head[0])
        self.head[0].register_forward_hook(lambda *_: None)
        self.register_buffer("replaced", torch.zeros(1))
        self.counter, self.fail_at, self.seen = 0, None, []

    def forward(self, x: Tensor) -> Tensor:
        if self.counter == self.fail_at:
            raise RuntimeError("a fault")
        self.replaced = self.replaced + 1
        self.counter += 1
        random.random(), np.random.rand(), torch.rand(1)
        x = self.stem(x)
        self.head[2].layout.record([1] * len(x))
        dropped = nn.functional.dropout(x, 0.5, self.head[0].training)
        self.seen.append((self.head[0].training, self.stem[1].training, dropped))
        return self.head[2](self.head[1](dropped))


def whole_batches(count: int = 4) -> list[Tensor]:
    return [gaussian((2, C, 4, 4), seed=i) for i in range(count)]


@pytest.mark.parametrize("source", ROI_SOURCES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fault", ["none", "forward", "loader", "short loader", "interrupt"])
def test_everything_is_as_before(source, training, fault):
    model = Whole().train(training)
    model.head[1].train(not training)  # modes may be mixed
    model(whole_batches()[0])
    model.fail_at = model.counter + 2 if fault == "forward" else None

    def loader():
        for i, batch in enumerate(whole_batches()):
            if i == 2 and fault == "loader":
                raise OSError("a broken file")
            if i == 2 and fault == "interrupt":
                raise KeyboardInterrupt
            if i == 2 and fault == "short loader":
                return
            random.random(), np.random.rand(), torch.rand(1)
            yield batch

    before, layout = Snapshot(model), model.head[2].layout
    draw = layout.generator().get_state()
    expected = {
        "none": None,
        "forward": (RuntimeError, "a fault"),
        "loader": (OSError, "a broken file"),
        "short loader": (ValueError, "the loader ended after 2 of num_iters = 4 batches; the "),
        "interrupt": (KeyboardInterrupt, None),
    }[fault]
    if expected is None:
        update(model, loader(), 4, roi_source=source)
    else:
        with pytest.raises(expected[0], match=expected[1]):
            update(model, loader(), 4, roi_source=source)
    before.assert_unchanged(statistics=fault != "none")
    assert torch.equal(layout.generator().get_state(), draw)  # shuffles go on where they were


def test_the_rest_of_the_model_does_what_its_mode_says():
    batches = whole_batches()
    for source, training in (("train", True), ("test", False)):
        for begin in (True, False):
            model = Whole().train(begin)
            model.stem[1].running_mean.fill_(5.0)
            update(model, batches, modules="head", roi_source=source)
            assert [seen[:2] for seen in model.seen] == [(training, training)] * 4
            # Without dropout the head sees what the stem, under its old statistics, gives.
            if source == "test":
                inputs = [model.head[1](model.stem.eval()(b)) for b in batches]
                assert_statistics(model.head[2], [x.detach() for x in inputs])
            assert (model.stem[1].running_mean == 5).all()


def test_layers_asked_for_use_their_mini_batch():
    """In inference mode too: the second layer sees what the first one normalizes by the batch."""
    model = nn.Sequential(nn.BatchNorm2d(C), nn.Tanh(), nn.BatchNorm2d(C)).eval()
    batches = [gaussian((3, C, 4, 4), 7.0, 3.0, i) for i in range(3)]
    update(model, batches, roi_source="test")
    seen = [nn.functional.batch_norm(b, None, None, training=True).tanh() for b in batches]
    assert_statistics(model[2], seen)


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


@pytest.mark.parametrize("data", ["independent", "correlated", "levels"])
def test_standard_error_predicts_the_spread(data):
    """Of the mean over repeated passes: also where values of an image are alike, and where a
    shared layer sees levels with means of their own."""
    passes, batches, images, positions = 200, 8, 2, 9
    g = torch.Generator().manual_seed(0)
    shape = (passes, batches, images, 2, 3, 3)
    x = torch.randn(shape, generator=g)
    if data == "correlated":
        x = x + 2 * torch.randn((*shape[:4], 1, 1), generator=g)

    class Model(nn.Sequential):
        def forward(self, x: Tensor) -> None:
            for level in range(3 if data == "levels" else 1):
                self[0](x + 10 * level)

    found, errors = [], []
    for each in x:
        layer = update(Model(nn.BatchNorm2d(2)), list(each)).layers[0]
        assert layer.samples == batches * images * positions * (3 if data == "levels" else 1)
        found.append(layer.new_mean)
        errors.append(layer.standard_error * layer.new_var.sqrt())
    spread = torch.stack(found).std(0)
    predicted = torch.stack(errors).square().mean(0).sqrt()
    assert (predicted / spread - 1).abs().max() < 0.2


def test_standard_error_of_one_batch_is_unknown():
    report = update(nn.BatchNorm2d(C), whole_batches(1))
    assert report.layers[0].standard_error.isnan().all()
    assert "nan" in str(report)


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
