"""Heads with our layers under `torch.compile`, `torch.export` and copies: as without them."""

import copy
import shutil

import pytest
import torch
from torch import nn

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout

from ..helpers.ranks import run_ranks

BATCHES = {
    "images": {},
    "worker": {},
    "worker, 2 virtual": {"virtual_workers": 2},
    "shuffled, 2 virtual": {"virtual_workers": 2},
    "global": {},
    "shuffled": {},  # of real workers
}
STEPS = [(3, 2), (4, 1), (0, 0), (0, 5)]  # RoIs of each image


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch.compiler.reset()


class Head(nn.Module):
    """Two layers that share a layout, and a third behind a pooling, with one value per RoI."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layout = RoILayout(NormalizationBatch(name.split(",")[0], **BATCHES[name]))
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)])
        self.norms = nn.ModuleList([RoIBatchNorm2d(4, layout=self.layout) for _ in range(3)])

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = norm(conv(x)).relu()
        return self.norms[2](x.mean((2, 3)))


def train(head: Head, forward) -> list:
    results = []
    generator = torch.Generator().manual_seed(0)
    for iteration, rois in enumerate(STEPS):
        head.layout.set_iteration(iteration)
        head.layout.record(rois)
        x = torch.randn(sum(rois), 3, 5, 5, generator=generator, dtype=torch.float64)
        x = x.to(head.norms[0].weight.dtype).requires_grad_()
        head.zero_grad()
        y = forward(x)
        y.square().sum().backward()
        gradients = [p.grad.clone() for p in head.parameters()]
        buffers = [b.clone() for b in head.buffers()]
        finite = [norm.last_finite.clone() for norm in head.norms]
        results.append([y.detach(), x.grad, *gradients, *buffers, *finite])
    return results


@pytest.mark.parametrize("name", [name for name in BATCHES if name != "shuffled"])
def test_training_is_compiled_whole(name):
    torch.manual_seed(0)
    head = Head(name)
    twin = copy.deepcopy(head)
    expected = train(twin, twin)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(train(head, compiled), expected, rtol=1e-5, atol=1e-6)


def on_rank(rank: int, world_size: int) -> dict[str, list]:
    """What training gives without compilation, and with it."""
    results = {}
    for name in ("worker", "shuffled", "global"):
        torch.manual_seed(0)
        head = Head(name)
        twin = copy.deepcopy(head)
        compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
        results[name] = [train(twin, twin), train(head, compiled)]
        torch.compiler.reset()
    return results


def test_training_on_ranks_has_no_break_at_the_collectives():
    for rank in run_ranks(on_rank, 2):
        for expected, compiled in rank.values():
            torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler's C++ needs g++")
def test_training_with_the_default_compiler():
    torch.manual_seed(0)
    head = Head("shuffled, 2 virtual")
    # Its convolutions of no RoIs fail on a CPU, whatever layer is behind them (torch 2.14).
    head.convs = nn.ModuleList([nn.Identity(), nn.Identity()])
    head.norms = nn.ModuleList([RoIBatchNorm2d(3, layout=head.layout) for _ in range(3)])
    head.double()
    twin = copy.deepcopy(head)
    expected = train(twin, twin)
    compiled = torch.compile(head, fullgraph=True)
    torch.testing.assert_close(train(head, compiled), expected, rtol=1e-9, atol=1e-9)


def test_export_in_eval_mode():
    head = Head("shuffled, 2 virtual")
    train(head, head)
    head.eval()
    x = torch.randn(5, 3, 5, 5)
    rois = torch.export.Dim("rois")
    exported = torch.export.export(head, (x,), dynamic_shapes=({0: rois},)).module()
    for number in (2, 5, 8):
        x = torch.randn(number, 3, 5, 5)
        torch.testing.assert_close(exported(x), head(x))
