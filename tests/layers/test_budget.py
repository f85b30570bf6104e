"""How many operations a layer dispatches in training, its running statistics included.

On a GPU the time of a small layer is the number of its launches. Views, and allocations that are
not filled, launch nothing; a kernel of our own is one launch.
"""

import pytest
import torch

from bn_detect.benchmarks.overhead import CountOperations
from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout, steps

from ..helpers.ranks import run_ranks

BATCHES = {
    "images": {},
    "worker": {},
    "worker, 8 virtual": {"virtual_workers": 8},
    "shuffled, 8 virtual": {"virtual_workers": 8},
    "global": {},
}
# What makes the host wait for a GPU, or sums in an order that is not fixed there.
FORBIDDEN = {"_local_scalar_dense", "nonzero", "bincount", "index_add", "index_add_", "index_put_"}


def training_step(name: str, shape: tuple, dtype=torch.float32) -> tuple[list, list]:
    """Operations of the forward and of the backward of one of the later layers of a head."""
    layout = RoILayout(NormalizationBatch(name.split(",")[0], **BATCHES.get(name, {})))
    layout.record([shape[0] // 16] * 16)
    first, layer = (RoIBatchNorm2d(shape[1], layout=layout) for _ in range(2))
    x = torch.randn(shape, dtype=dtype)
    first(x)
    inputs = [x.requires_grad_(), *layer.parameters()]
    with CountOperations() as forward:
        y = layer(x)
    dy = torch.ones_like(y)
    with CountOperations() as backward:
        torch.autograd.grad(y, inputs, dy)
    return forward.names, backward.names


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("shape", [(32, 8, 7, 7), (32, 8, 1, 1), (32, 8)], ids=str)
def test_kernels(name, shape, monkeypatch):
    """The launches are counted and left out, so this needs no GPU."""
    triton_ops = pytest.importorskip("bn_detect.layers.steps.triton_ops")
    launches: list = []
    monkeypatch.setattr(steps, "ops_for", lambda x: triton_ops)
    monkeypatch.setattr(triton_ops, "launch", lambda kernel, *_, **__: launches.append(kernel))
    forward, backward = training_step(name, shape)
    assert launches[:6] == launches[6:12]  # the forward of the first layer, and of the second
    assert len(launches) == 12 + 4
    assert len(forward) <= 8 - 6, forward
    assert len(backward) <= 8 - 4, backward
    assert not FORBIDDEN & {*forward, *backward}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("shape", [(32, 8, 7, 7), (32, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_operations(name, shape, dtype):
    forward, backward = training_step(name, shape, dtype)
    assert len(forward) <= 45, forward
    assert len(backward) <= 25, backward
    waits = {"_local_scalar_dense"}  # there is nothing to wait for on a CPU
    assert not (FORBIDDEN - waits) & {*forward, *backward}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict]:
    return run_ranks(on_rank, 2)


def on_rank(rank: int, world_size: int) -> dict:
    """The collectives of each batch, forward and backward."""
    found = {}
    for name in ("images", "worker", "shuffled", "global"):
        ways = training_step(name, (32, 8, 7, 7))
        found[name] = [[op for op in ops if hasattr(torch.ops.c10d, op)] for ops in ways]
    return found


@pytest.mark.parametrize("name", ["images", "worker", "shuffled", "global"])
def test_one_collective_each_way_where_groups_span_ranks(name, two_ranks):
    spans = name in ("shuffled", "global")
    for rank in two_ranks:
        assert rank[name] == [["allreduce_"] * spans] * 2


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("shape", [(64, 16, 9, 9), (64, 16)], ids=str)
def test_two_passes_give_the_same_bits(name, shape):
    results = []
    torch.manual_seed(0)
    x, dy = torch.randn(2, *shape)
    for _ in range(2):
        layout = RoILayout(NormalizationBatch(name.split(",")[0], **BATCHES[name]))
        layout.record([4] * 16)
        layer = RoIBatchNorm2d(shape[1], layout=layout)
        inputs = [x.clone().requires_grad_(), *layer.parameters()]
        y = layer(inputs[0])
        results.append([y, *torch.autograd.grad(y, inputs, dy), *layer.buffers()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
