"""BatchNorm over levels: against torch's BatchNorm2d, one big batch, and float64 closed forms."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bn_detect.layers import LevelBatchNorm2d, fill_levels
from bn_detect.population.averaging import average_running_statistics
from tests.helpers.ranks import run_worlds

C = 3
CHOICES = ("shared", "level")
EVERY = list(itertools.product(CHOICES, repeat=3))  # batch, population, affine
SIZES = [(8, 6), (4, 3), (2, 2), (1, 1)]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def levels(batch: int = 2, seed: int = 0, mean: float = 0.0, sigma: float = 1.0) -> list[Tensor]:
    """Float64 features of four levels, which differ in mean and spread."""
    g = torch.Generator().manual_seed(seed)
    return [
        mean
        + sigma * (d + (1 + d) * torch.randn(batch, C, *size, generator=g, dtype=torch.float64))
        for d, size in enumerate(SIZES)
    ]


def layer(batch: str, population: str, affine: str, **kwargs) -> LevelBatchNorm2d:
    choices = {"batch": batch, "population": population, "affine": affine}
    made = LevelBatchNorm2d(C, len(SIZES), **choices, dtype=torch.float64, **kwargs)
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    return made


def row(values: Tensor, level: int) -> Tensor:
    return values[level] if values.dim() == 2 else values


def flat(xs: list[Tensor]) -> Tensor:
    """All positions of all levels: (values, C)."""
    return torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in xs])


def reference(xs: list[Tensor], bn: LevelBatchNorm2d) -> list[Tensor]:
    """What training computes, by torch's own function on what is one batch."""
    if bn.batch == "level":
        return [
            F.batch_norm(x, None, None, row(bn.weight, d), row(bn.bias, d), True)
            for d, x in enumerate(xs)
        ]
    unit = F.batch_norm(flat(xs), None, None, training=True)
    parts = unit.split([len(x) * x[0, 0].numel() for x in xs])
    ys = []
    for d, (x, part) in enumerate(zip(xs, parts, strict=True)):
        y = part.view(len(x), *x.shape[2:], C).movedim(-1, 1)
        scale, shift = (row(p, d)[:, None, None] for p in (bn.weight, bn.bias))
        ys.append(y * scale + shift)
    return ys


def gradients(xs: list[Tensor], bn: nn.Module, forward, dys=None) -> dict[str, Tensor]:
    """Outputs, and gradients for those of the outputs."""
    dys = dys or levels(len(xs[0]), seed=3)
    xs = [x.clone().requires_grad_() for x in xs]
    ys = forward(xs)
    loss = sum((y * dy).sum() for y, dy in zip(ys, dys, strict=True))
    wanted = [*xs, *bn.parameters()]
    names = [f"dx{d}" for d in range(len(xs))] + [name for name, _ in bn.named_parameters()]
    found = dict(zip(names, torch.autograd.grad(loss, wanted), strict=True))
    return found | {f"y{d}": y.detach() for d, y in enumerate(ys)}


@pytest.mark.parametrize(("batch", "population", "affine"), EVERY)
def test_training_is_batch_norm_of_what_is_one_batch(batch, population, affine):
    bn = layer(batch, population, affine)
    xs = levels()
    if batch == "level":  # torch refuses the coarsest level's two values; ours does not
        assert all(y.isfinite().all() for y in bn(xs))
    expected = gradients(xs, bn, lambda xs: reference(xs, bn))
    torch.testing.assert_close(gradients(xs, bn, bn), expected, **CLOSE)


@pytest.mark.parametrize("average", ["in_turn", "union"])
@pytest.mark.parametrize(("batch", "population", "affine"), EVERY)
def test_moving_average(batch, population, affine, average):
    bn = layer(batch, population, affine, momentum=0.25, moving_average=average)
    each, union = [[d] for d in range(len(SIZES))], [list(range(len(SIZES)))]
    in_turn = (batch, population, average) == ("level", "shared", "in_turn")
    steps = each if population == "level" or in_turn else union
    rows = len(SIZES) if population == "level" else 1
    mean, var = torch.zeros(rows, C).double(), torch.ones(rows, C).double()
    for seed in range(3):
        xs = levels(seed=seed)
        bn(xs)
        for i, step in enumerate(steps):
            values, row = flat([xs[d] for d in step]), min(i, rows - 1)
            mean[row] = 0.75 * mean[row] + 0.25 * values.mean(0)
            var[row] = 0.75 * var[row] + 0.25 * values.var(0)
    assert bn.num_batches_tracked == 3 * (len(SIZES) if in_turn else 1)
    for d in range(len(SIZES)):
        torch.testing.assert_close(bn.statistics_of(d), (mean[d % rows], var[d % rows]), **CLOSE)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_in_turn_is_one_batch_norm_called_on_level_after_level(momentum):
    ours = layer("level", "shared", "shared", momentum=momentum)
    plain = nn.BatchNorm2d(C, momentum=momentum, dtype=torch.float64)
    plain.load_state_dict(ours.state_dict())
    for seed in range(3):
        xs = levels(seed=seed)
        torch.testing.assert_close(ours(xs), [plain(x) for x in xs], **CLOSE)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), **CLOSE)


@pytest.mark.parametrize(("batch", "population", "affine"), EVERY)
def test_inference_uses_the_population(batch, population, affine):
    bn = layer(batch, population, affine)
    bn(levels())
    bn.eval()
    state = {k: v.clone() for k, v in bn.state_dict().items()}
    xs = levels(seed=5)
    for d, (x, y) in enumerate(zip(xs, bn(xs), strict=True)):
        plain = nn.BatchNorm2d(C, dtype=torch.float64).eval()
        with torch.no_grad():
            plain.weight.copy_(row(bn.weight, d))
            plain.bias.copy_(row(bn.bias, d))
        plain.running_mean, plain.running_var = bn.statistics_of(d)
        torch.testing.assert_close(y, plain(x), **CLOSE)
        assert torch.equal(bn(x, level=d), y)
    assert all(torch.equal(value, state[k]) for k, value in bn.state_dict().items())


@pytest.mark.parametrize("population", CHOICES)
def test_one_level_at_a_time(population):
    """Per-level batches need not come together."""
    together, single = (layer("level", population, "level", momentum=0.5) for _ in range(2))
    xs = levels()
    ys = together(xs)
    for d, x in enumerate(xs):
        torch.testing.assert_close(single(x, level=d), ys[d], **CLOSE)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(single, name), getattr(together, name), **CLOSE)


@pytest.mark.parametrize("batch", CHOICES)
def test_small_spread_about_a_large_mean(batch):
    bn = layer(batch, "level", "shared", momentum=1.0)
    exact = levels(mean=100, sigma=1e-4)
    bn.float()([x.float() for x in exact])
    for d, x in enumerate(exact):
        var = flat([x.float().double()]).var(0)
        torch.testing.assert_close(bn.statistics_of(d)[1].double(), var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch", CHOICES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_half_precision_and_memory_formats(batch, memory_format):
    bn = layer(batch, "shared", "shared").float()
    xs = levels()
    halves = [x.to(torch.bfloat16).to(memory_format=memory_format) for x in xs]
    expected = reference([x.double() for x in halves], bn.double())
    for half, y, e in zip(halves, bn.float()(halves), expected, strict=True):
        assert y.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=memory_format) == half.is_contiguous(
            memory_format=memory_format
        )
        torch.testing.assert_close(y.double(), e, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("batch", CHOICES)
def test_a_single_value_per_channel_becomes_the_bias_and_updates_nothing(batch):
    bn = layer(batch, "level", "shared")
    xs = [x[:1] for x in levels()]
    if batch == "shared":
        xs = [x[:0] for x in xs[:-1]] + [xs[-1][:, :, :1, :1]]
    ys = bn(xs)
    torch.testing.assert_close(ys[-1].flatten(), bn.bias.detach(), **CLOSE)
    assert (bn.running_mean[-1] == 0).all() and (bn.running_var[-1] == 1).all()


def test_empty_inputs():
    bn = layer("shared", "level", "level")
    xs = [levels()[0], *(x[:0] for x in levels()[1:])]
    result = gradients(xs, bn, bn, [torch.ones_like(x) for x in xs])
    assert all(value.isfinite().all() for value in result.values())
    alone = layer("level", "level", "level")
    torch.testing.assert_close(result["y0"], alone(xs)[0].detach(), **CLOSE)
    nothing = [x[:0] for x in xs]
    assert [len(y) for y in bn(nothing)] == [0] * 4


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda bn, xs: bn(xs[:3]), "3 inputs for 4 levels"),
        (lambda bn, xs: bn(xs[0]), "one tensor and its level; got Tensor with level None"),
        (lambda bn, xs: bn(xs, level=1), "got list with level 1"),
        (lambda bn, xs: bn.eval()(xs[0], level=4), r"level is 4; it must be in \[0, 4\)"),
        (lambda bn, xs: bn(xs[0], level=0), "must come at once, not those of level 0"),
        (lambda bn, xs: bn([x[:, :2] for x in xs]), r"expects \(N, 3, ...\); got \(2, 2, 8, 6\)"),
        (lambda *_: layer("stage", "shared", "shared"), "batch is 'stage'; it must be one of"),
        (lambda *_: layer("shared", "shared", ""), "affine is ''; it must be"),
        (lambda *_: layer(*["shared"] * 3, moving_average="mean"), "moving_average is 'mean'"),
        (lambda *_: LevelBatchNorm2d(C, 0), "num_levels is 0"),
    ],
)
def test_mistakes(call, said):
    with pytest.raises(ValueError, match=said):
        call(layer("shared", "shared", "shared"), levels())


def test_state_of_plain_batch_norm_fits_and_fills_levels():
    plain = nn.BatchNorm2d(C, dtype=torch.float64)
    plain(levels()[0])
    shared = layer("level", "shared", "shared")
    shared.load_state_dict(plain.state_dict())
    assert shared.state_dict().keys() == plain.state_dict().keys()

    model = nn.Sequential(layer("level", "level", "shared"), nn.BatchNorm2d(C))
    state = {f"0.{k}": v for k, v in plain.state_dict().items()}
    fill_levels(model, state)
    assert state["0.running_mean"].shape == (4, C) and state["0.weight"].shape == (C,)
    model[0].load_state_dict({k[2:]: v for k, v in state.items()})
    for d in range(4):
        expected = plain.running_mean, plain.running_var
        torch.testing.assert_close(model[0].statistics_of(d), expected)


def test_second_derivatives_are_refused():
    xs = [x.requires_grad_() for x in levels()]
    loss = sum(y.square().sum() for y in layer("shared", "shared", "shared")(xs))
    (grad, *_) = torch.autograd.grad(loss, xs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# Ranks: (images on each), uneven and empty.
SHARES = {2: [(3, 1), (4, 0), (0, 0)], 3: [(1, 0, 2)]}


def on_rank(rank: int, world_size: int) -> list[dict]:
    results = []
    for share in SHARES[world_size]:
        for choices in EVERY:
            bn = layer(*choices, synchronized=True)
            own = [[x.split(share)[rank] for x in levels(sum(share), seed)] for seed in (0, 3)]
            results.append(gradients(own[0], bn, bn, own[1]) | dict(bn.named_buffers()))
    local = layer("level", "level", "shared")
    local(levels(2, seed=rank))
    average_running_statistics(local)
    return [*results, dict(local.named_buffers())]


@pytest.fixture(scope="module")
def worlds() -> dict[int, list]:
    return run_worlds(on_rank, sorted(SHARES))


@pytest.mark.parametrize("world_size", SHARES)
def test_ranks_are_one_process_on_all_images(worlds, world_size):
    ranks = worlds[world_size]
    cases = [(share, choices) for share in SHARES[world_size] for choices in EVERY]
    for i, (share, choices) in enumerate(cases):
        bn = layer(*choices)
        expected = gradients(levels(sum(share)), bn, bn) | dict(bn.named_buffers())
        for key, value in expected.items():
            found = [r[i][key] for r in ranks]
            if key in ("weight", "bias"):
                torch.testing.assert_close(sum(found), value, **CLOSE)
            elif key[0] == "y" or key.startswith("dx"):
                torch.testing.assert_close(torch.cat(found), value, **CLOSE)
            else:
                for each in found:
                    torch.testing.assert_close(each, value, **CLOSE)
    singles = [layer("level", "level", "shared") for _ in ranks]
    for rank, bn in enumerate(singles):
        bn(levels(2, seed=rank))
    mean = torch.stack([bn.running_mean for bn in singles]).mean(0)
    for r in ranks:
        torch.testing.assert_close(r[-1]["running_mean"], mean, **CLOSE)


def test_synchronized_without_ranks():
    assert not dist.is_initialized()
    xs = levels()
    a, b = (layer("shared", "shared", "shared", synchronized=s) for s in (True, False))
    torch.testing.assert_close(a(xs), b(xs))
