"""Which forward a question belongs to: under activation checkpointing, in backwards, in threads."""

import contextlib
import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from bn_detect.layers import NormalizationBatch, RoILayout, set_iteration, use_layout
from bn_detect.layers.watching import apply_to_rois
from tests.helpers.ranks import run_ranks

SETTINGS = [
    {"batch": "images"},
    {"batch": "worker"},
    {"batch": "worker", "virtual_workers": 2},
    {"batch": "shuffled", "virtual_workers": 2},
    {"batch": "shuffled", "exchange": "features"},
    {"batch": "global"},
]
GROUPS = {"ids": lambda value: " ".join(map(str, value.values())) if value else ""}
BOXES = ([range(7), range(5)], [range(2), range(10)], [range(6), range(6)])  # equal totals


class Pooler(nn.Module):
    def forward(self, x: Tensor, boxes: list) -> Tensor:
        return x


class Head(nn.Module):
    """Two BN layers, dropout, and a choice of what is repeated in the backward.

    Args:
        repeated: "nothing", "head" (the layers), "each" (layer by layer) or "all" (pooler too).
    """

    def __init__(self, setting: dict, repeated: str = "nothing", **how) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pooler, self.roi_layout = Pooler(), RoILayout(NormalizationBatch(**setting))
        layers = [nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Tanh()]
        layers += [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Tanh()]
        self.layers = use_layout(nn.Sequential(*layers).double(), self.roi_layout)
        self.roi_layout.watch(self.pooler)
        self.repeated = repeated
        self.checkpoint = partial(checkpoint, **({"use_reentrant": False} | how))

    def forward(self, x: Tensor, boxes: list) -> Tensor:
        if self.repeated == "all":
            return self.checkpoint(lambda x: self.head(self.pooler(x, boxes)), x)
        x = self.pooler(x, boxes)
        if self.repeated == "head":
            return self.checkpoint(self.head, x)
        if self.repeated == "each":
            for layer in self.layers:
                x = self.checkpoint(layer, x)
            return x
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        return apply_to_rois(self.roi_layout, self.layers, x, training=self.training)


def features(seed: int, rois: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 1 + torch.arange(rois).double().reshape(-1, 1, 1, 1)
    x = torch.randn(rois, 2, 3, 3, dtype=torch.float64, generator=generator) * scale
    return x.requires_grad_()


def loss_of(y: Tensor) -> Tensor:
    weight = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).sin()
    return (y * weight).sum()


def gradients(head: nn.Module, order=(0, 1, 2), between=lambda: None) -> list[Tensor]:
    """Of the forwards 0, 1 and 2, whose backwards run after them, one by one or (None) at once."""
    inputs, losses = [features(seed) for seed in range(3)], []
    for x, boxes in zip(inputs, BOXES, strict=True):
        between()
        losses.append(loss_of(head(x, boxes)))
    if order is None:
        sum(losses).backward()
    else:
        for index in order:
            losses[index].backward()
    return [t.grad for t in (*inputs, *head.parameters())]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), None], ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("repeated", ["head", "each", "all"])
@pytest.mark.parametrize("setting", SETTINGS, **GROUPS)
def test_each_repetition_has_the_groups_of_its_forward(setting, repeated, reentrant, order):
    if setting.get("exchange") and repeated == "each":
        pytest.skip("this head repeats layers without moving RoIs")
    expected = gradients(Head(setting), order)
    found = gradients(Head(setting, repeated, use_reentrant=reentrant), order)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("repeated", ["head", "each", "all"])
def test_random_layers_between_repeat_too(repeated):
    """The numbers that are drawn to recognise a forward are drawn in its repetition as well."""
    setting = {"batch": "shuffled", "virtual_workers": 2}
    heads = [Head(setting, name) for name in (repeated, repeated)]
    seen: list[list[Tensor]] = [[], []]
    for head, masks in zip(heads, seen, strict=True):
        head.layers[2] = Noise(masks)
    torch.manual_seed(1)
    gradients(heads[0])
    forward, backward = seen[0][:3], seen[0][3:]
    assert len(backward) == 3
    torch.testing.assert_close(backward, forward, rtol=0, atol=0)


class Noise(nn.Module):
    def __init__(self, masks: list) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.rand_like(x)
        self.masks.append(mask.detach())
        return x * mask


def test_shuffles_are_those_of_a_run_without_checkpointing():
    setting = {"batch": "shuffled", "virtual_workers": 2}
    plain, repeated = Head(setting), Head(setting, "head")
    for head in (plain, repeated):
        set_iteration(head, 3)
    x = features(0)
    for boxes in BOXES:
        torch.testing.assert_close(repeated(x, boxes), plain(x, boxes), rtol=0, atol=0)


@pytest.mark.parametrize("setting", SETTINGS, **GROUPS)
def test_without_checkpointing_nothing_is_drawn(setting):
    head = Head(setting)
    before = torch.get_rng_state()
    gradients(head)
    with torch.no_grad():
        head(features(0), BOXES[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("repeated", ["head", "each", "all"])
def test_without_the_random_state_one_forward_is_repeated_and_several_are_refused(
    repeated, reentrant
):
    setting = {"batch": "shuffled", "virtual_workers": 2}
    how = {"use_reentrant": reentrant, "preserve_rng_state": False}
    head, expected = Head(setting, repeated, **how), Head(setting)
    for seed, boxes in enumerate(BOXES):
        xs = [features(seed) for _ in range(2)]
        for h, x in zip((head, expected), xs, strict=True):
            loss_of(h(x, boxes)).backward()
        torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match="preserve_rng_state=True"):
        gradients(head)


def test_forwards_that_are_seeded_alike_are_refused_unless_a_backward_is_between():
    setting = {"batch": "shuffled", "virtual_workers": 2}
    head = Head(setting, "head")
    for boxes in BOXES:
        torch.manual_seed(5)
        loss_of(head(features(0), boxes)).backward()
    with pytest.raises(RuntimeError, match="different random states"):
        gradients(Head(setting, "head"), between=lambda: torch.manual_seed(5))


@pytest.mark.parametrize("repeated", ["nothing", "head", "all"])
@pytest.mark.parametrize("inner", ["nothing", "head", "all"])
@pytest.mark.parametrize("setting", SETTINGS, **GROUPS)
def test_a_new_forward_inside_a_backward(setting, repeated, inner):
    """Its images are other ones, and the rest of the backward has those that it had."""
    head = Head(setting, repeated)
    set_iteration(head, 1)
    alone = copy.deepcopy(head)
    alone(features(0), BOXES[0])
    expected_inside = alone(features(1, 9), [range(4), range(5)]).detach()
    expected = [features(0)]
    once = Head(setting)
    set_iteration(once, 1)
    loss_of(once(expected[0], BOXES[0])).backward()

    inside = []
    x = features(0)
    y = head(x, BOXES[0])

    def run(grad: Tensor) -> None:
        head.repeated = inner
        inside.append(head(features(1, 9), [range(4), range(5)]).detach())
        head.repeated = repeated

    y.register_hook(run)
    loss_of(y).backward()
    torch.testing.assert_close(inside[0], expected_inside, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.grad, expected[0].grad, rtol=1e-9, atol=1e-9)


def test_memory_is_bounded():
    head = Head({"batch": "images"}, "head")
    for _ in range(200):
        loss_of(head(features(0), BOXES[0])).backward()
    clock = head.roi_layout._clock
    assert len(clock._remembered) <= 64 and len(clock._numbers) <= 64 * 4


# Threads.


def inference_in_threads(heads: list[nn.Module], calls: int = 60) -> int:
    """How many outputs differ from those of one thread, each thread having its own images."""
    boxes = [[range(1 + i), range(11 - i)] for i in range(len(heads))]
    inputs = [features(i).detach() for i in range(len(heads))]
    alone = copy.deepcopy(heads[0])
    expected = [alone(x, b) for x, b in zip(inputs, boxes, strict=True)]
    start = Barrier(len(heads))

    def call(i: int) -> int:
        start.wait()
        with torch.no_grad():
            found = [heads[i](inputs[i], boxes[i]) for _ in range(calls)]
        return sum(not torch.allclose(y, expected[i]) for y in found)

    with ThreadPoolExecutor(len(heads)) as pool:
        return sum(pool.map(call, range(len(heads))))


def test_threads_have_recordings_of_their_own():
    head = Head({"batch": "shuffled", "test_stats": "minibatch"}).eval()
    assert inference_in_threads([head] * 4) == 0


def replicas(head: nn.Module, number: int) -> list[nn.Module]:
    """What DataParallel makes of a head for its threads."""
    made = [head._replicate_for_data_parallel() for _ in range(number)]
    for replica in made:
        replica._modules.update(head.named_children())
    return made


def test_replicas_of_data_parallel_share_a_layout():
    assert inference_in_threads(replicas(Head({"batch": "images"}), 4)) == 0


def test_training_in_threads_with_checkpointing():
    """The backward of a GPU runs in a thread of its own; here it runs in another one."""
    setting = {"batch": "shuffled", "virtual_workers": 2}
    head, expected = Head(setting, "head"), gradients(Head(setting))
    inputs = [features(seed) for seed in range(3)]
    losses = [loss_of(head(x, boxes)) for x, boxes in zip(inputs, BOXES, strict=True)]
    with ThreadPoolExecutor(1) as pool:
        for loss in losses:
            pool.submit(loss.backward).result()
    found = [t.grad for t in (*inputs, *head.parameters())]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# DistributedDataParallel.


def on_rank(rank: int, world_size: int) -> dict:
    """Gradients by batch, by "one" backward or one for "each" forward, and by what is repeated."""
    found = {}
    for setting, backwards, repeated in itertools.product(
        ({"batch": "images"}, {"batch": "shuffled"}, {"batch": "global"}),
        ("one", "each"),
        ("nothing", "head", "all"),
    ):
        head = DistributedDataParallel(Head(setting, repeated))
        torch.manual_seed(rank)
        inputs, losses = [features(10 * rank + seed) for seed in range(3)], []
        with contextlib.nullcontext() if backwards == "one" else head.no_sync():
            for x, boxes in zip(inputs, BOXES, strict=True):
                losses.append(loss_of(head(x, boxes)))
            for loss in [sum(losses)] if backwards == "one" else losses:
                loss.backward()
        grads = [t.grad for t in (*inputs, *head.parameters())]
        found[setting["batch"], backwards, repeated] = grads
        dist.barrier()
    return found


def test_distributed_data_parallel():
    for found in run_ranks(on_rank, 2):
        for (*case, _), grads in found.items():
            torch.testing.assert_close(grads, found[(*case, "nothing")], rtol=1e-9, atol=1e-9)
