"""What only a GPU can show. `make gpu` runs this; BN_DETECT_CUDA_TESTS=cpu tries it on a CPU."""

import io
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bn_detect.benchmarks.measuring import on_ranks
from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout, grouped_batch_norm

from .reference import EPS, affine, features, group_ids, grouped_reference, outcome

ON_CPU = os.environ.get("BN_DETECT_CUDA_TESTS") == "cpu"
DEVICE = torch.device("cpu" if ON_CPU else "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not (ON_CPU or torch.cuda.is_available()), reason="needs a GPU"),
]
BATCHES = {
    "images": {},
    "worker": {"virtual_workers": 2},
    "shuffled": {"virtual_workers": 2},
    "global": {},
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


def head_with(name: str) -> tuple[nn.Module, RoILayout]:
    """Two convolutions and two of our layers, which share a layout."""
    torch.manual_seed(0)
    layout = RoILayout(NormalizationBatch(name, **BATCHES[name]))
    layers = [m for _ in range(2) for m in (nn.Conv2d(8, 8, 1), RoIBatchNorm2d(8, layout=layout))]
    return nn.Sequential(*layers, nn.ReLU()).to(DEVICE), layout


def train(head: nn.Module, layout: RoILayout, steps: range, forward=None) -> list:
    """Outputs and gradients of each step, and the buffers at the end."""
    results = []
    for step in steps:
        layout.set_iteration(step)
        layout.record([3, 5])
        x = features(8, 8, 7, 7, seed=step).float().to(DEVICE)
        head.zero_grad()
        y = (forward or head)(x)
        y.square().sum().backward()
        results += [y.detach(), *(p.grad.clone() for p in head.parameters())]
    return results + [b.clone() for b in head.buffers()]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(12, 5, 7, 7), (12, 257, 14, 14), (12, 3, 1, 1)], ids=str)
def test_numerics_against_float64(shape, layout, dtype):
    x, group = features(*shape), group_ids([7, 0, 5])
    weight, bias = affine(shape[1], torch.float64 if dtype == torch.float64 else torch.float32)
    upcast = [t.double() for t in (x.to(dtype), weight, bias)]
    expected = outcome(grouped_reference, *upcast, group, 3)
    x = x.to(DEVICE, dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    inputs = [t.to(DEVICE) for t in (x, weight, bias, group)]
    actual = outcome(grouped_batch_norm, *inputs, 3, EPS)
    for a, b in zip(actual, expected, strict=True):
        scale = b.abs().max().item() if b.numel() else 1
        close = TOLERANCE[dtype] * max(1, scale)
        torch.testing.assert_close(a.cpu().to(b.dtype), b, rtol=0, atol=close)


@pytest.mark.parametrize("name", BATCHES)
def test_two_runs_give_the_same_bits(name):
    torch.use_deterministic_algorithms(True)
    try:
        runs = [train(*head_with(name), range(2)) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", BATCHES)
def test_a_layer_never_waits_for_the_device(name):
    head, layout = head_with(name)
    train(head, layout, range(2))
    layout.record([3, 5])
    x = torch.randn(8, 8, 7, 7, device=DEVICE)
    layout.partition(8, x.device)
    if not ON_CPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        head(x).sum().backward()
    finally:
        if not ON_CPU:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", BATCHES)
def test_autocast(name):
    head, layout = head_with(name)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        low = train(head, layout, range(2))
    high = train(*head_with(name), range(2))
    torch.testing.assert_close(low[0].float(), high[0], rtol=0.1, atol=0.1)
    assert all(torch.isfinite(t).all() for t in low)


@pytest.mark.parametrize("name", BATCHES)
def test_compile(name):
    torch.compiler.reset()
    expected = train(*head_with(name), range(2))
    head, layout = head_with(name)
    backend = {"backend": "aot_eager"} if ON_CPU else {}
    compiled = torch.compile(head, fullgraph=True, **backend)
    actual = train(head, layout, range(2), compiled)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", BATCHES)
def test_a_resumed_run_gives_the_same_bits(name):
    straight = train(*head_with(name), range(4))
    head, layout = head_with(name)
    first = train(head, layout, range(2))
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    head, layout = head_with(name)
    head.load_state_dict(torch.load(file))
    rest = train(head, layout, range(2, 4))
    buffers = len(list(head.buffers()))
    for a, b in zip(straight, [*first[:-buffers], *rest], strict=True):
        assert torch.equal(a, b)


def on_rank(device: torch.device) -> list:
    """A step of the layer whose groups span ranks (NCCL's, or gloo's on a CPU), of each rank."""
    rank = dist.get_rank()
    results = []
    for name in ("shuffled", "global"):
        layout = RoILayout(NormalizationBatch(name))
        layout.record([4 + rank])
        layer = RoIBatchNorm2d(8, layout=layout).to(device)
        x = features(4 + rank, 8, 3, 3, seed=rank).float().to(device).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append([t.detach().cpu() for t in (y, x.grad, layer.running_var)])
    by_rank: list = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, results)
    return by_rank


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks(ranks):
    if not ON_CPU and ranks > torch.cuda.device_count():
        pytest.skip(f"needs {ranks} GPUs")
    by_rank = on_ranks(on_rank, ranks)
    x = torch.cat([features(4 + rank, 8, 3, 3, seed=rank) for rank in range(ranks)])
    expected = grouped_reference(x, None, None, torch.zeros(len(x)), 1)[0]
    y = torch.cat([results[1][0] for results in by_rank])
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    for results in by_rank:
        for a, b in zip(results, by_rank[0], strict=True):
            assert torch.equal(a[2], b[2])  # the same statistics on every rank
