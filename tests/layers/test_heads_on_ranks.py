"""A head trained on N real ranks equals one in one process with N virtual workers."""

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bn_detect.distributed import unshuffle_rois
from bn_detect.layers import NormalizationBatch, RoILayout, use_layout
from bn_detect.population.averaging import average_running_statistics

from .reference import affine, features, loss

IMAGES = 4  # per worker
STEPS = {  # RoIs of each worker in each step
    2: [(5, 3), (8, 0), (0, 0), (1, 7), (4, 4)],
    3: [(5, 3, 0), (0, 8, 1), (0, 0, 0), (1, 7, 4), (3, 0, 3)],
    4: [(5, 3, 0, 2), (0, 0, 8, 0), (0, 0, 0, 0), (1, 7, 2, 1), (0, 1, 3, 4)],
}
STEPS[8] = [many + few for many, few in zip(STEPS[4], STEPS[4][::-1], strict=True)]
FULL_STEPS = {2: [(5, 3), (1, 7)], 3: [(5, 3, 2), (1, 7, 4)], 4: [(5, 3, 1, 2), (1, 7, 2, 1)]}


class Case(NamedTuple):
    """How a small head is trained. batch "torch": with torch.nn.BatchNorm instead of ours."""

    batch: str
    images_per_group: int = 1
    exchange: str = "statistics"
    momentum: float | None = 0.1
    fc: bool = False  # Linear layers on (R, C); running statistics averaged in every step
    full: bool = False  # steps in which no worker is without RoIs
    dtype: torch.dtype = torch.float64
    shuffle_groups: int = 0

    @property
    def one_process(self) -> "Case":
        return self._replace(exchange="statistics")


CASES = {
    "images": Case("images"),
    "2 images": Case("images", 2),
    "3 images": Case("images", 3),
    "worker": Case("worker"),
    "shuffled": Case("shuffled"),
    "shuffled, moving features": Case("shuffled", exchange="features"),
    "global": Case("global"),
    "images, cumulative average": Case("images", momentum=None),
    "shuffled, cumulative average": Case("shuffled", momentum=None),
    "features, cumulative average": Case("shuffled", exchange="features", momentum=None),
    "images, fc": Case("images", fc=True),
    "worker, fc": Case("worker", fc=True),
    "shuffled, fc": Case("shuffled", fc=True),
    "features, fc": Case("shuffled", exchange="features", fc=True),
    "global, fc": Case("global", fc=True),
}
OTHER_CASES = {
    "worker, full": Case("worker", full=True),
    "global, full": Case("global", full=True),
    "torch": Case("torch", full=True),
    "float32 statistics": Case("shuffled", dtype=torch.float32),
    "float32 features": Case("shuffled", exchange="features", dtype=torch.float32),
}


def make_head(case: Case, layout: RoILayout) -> nn.Module:
    torch.manual_seed(0)
    if case.fc:
        layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3)]
    else:
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh()]
        layers += [nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3)]
    head = nn.Sequential(*layers).to(case.dtype)
    for i in (1, 4):
        head[i].momentum = case.momentum
        head[i].weight.data, head[i].bias.data = affine(head[i].num_features, case.dtype)
    return head if case.batch == "torch" else use_layout(head, layout)


def worker_rois(case: Case, rois: int, worker: int, step: int) -> tuple[Tensor, list[int]]:
    """(rois, ...) features and the RoIs of each of the worker's images, some of which have none."""
    seed = 100 * worker + step
    image = torch.randint(IMAGES, (rois,), generator=torch.Generator().manual_seed(seed))
    shape = (rois, 3) if case.fc else (rois, 3, 5, 5)
    x = features(*shape, mean=worker, std=1 + worker, seed=seed)
    return x.to(case.dtype), torch.bincount(image, minlength=IMAGES).tolist()


def train(case: Case, num_workers: int, rank: int | None, virtual: int = 1) -> dict:
    """SGD on the RoIs of `rank`, which has `virtual` workers, or in one process on all (None).

    Returns outputs (per step), input_gradients (per step), gradients (per step, summed over ranks),
    and buffers at the end (averaged over ranks).
    """
    workers = range(num_workers)
    if rank is not None:
        workers = workers[rank * virtual : (rank + 1) * virtual]
    settings = NormalizationBatch(
        "worker" if case.batch == "torch" else case.batch,
        case.images_per_group,
        len(workers),
        case.exchange,
        shuffle_groups=case.shuffle_groups,
        seed=3,
    )
    layout = RoILayout(settings)
    head = make_head(case, layout)
    results = {"outputs": [], "input_gradients": [], "gradients": []}
    for step, split in enumerate((FULL_STEPS if case.full else STEPS)[num_workers]):
        parts = [worker_rois(case, split[w], w, step) for w in workers]
        x = torch.cat([x for x, _ in parts]).requires_grad_()
        layout.record([rois for _, images in parts for rois in images])
        if case.exchange == "features":
            moved, plan = layout.shuffle(x)
            y = unshuffle_rois(head(moved), plan)
        else:
            y = head(x)
        head.zero_grad()
        loss(y).backward()
        gradient = parameters_to_vector([p.grad for p in head.parameters()])
        if rank is not None:
            dist.all_reduce(gradient)
        weights = parameters_to_vector(head.parameters()) - 1e-3 * gradient
        vector_to_parameters(weights.detach(), head.parameters())
        if case.fc:
            average_running_statistics(head)
        results["outputs"].append(y.detach())
        results["input_gradients"].append(x.grad)
        results["gradients"].append(gradient)
    average_running_statistics(head)
    return results | {"buffers": dict(head.named_buffers())}


def joined(by_rank: list[dict]) -> dict:
    """The ranks' results as one process would give them; what is common must be the same."""
    for other in by_rank[1:]:
        torch.testing.assert_close(other["buffers"], by_rank[0]["buffers"], rtol=0, atol=0)
    per_step = {
        key: [torch.cat(parts) for parts in zip(*(r[key] for r in by_rank), strict=True)]
        for key in ("outputs", "input_gradients")
    }
    return by_rank[0] | per_step


def on_rank(rank: int, world_size: int) -> dict:
    """Every case on one of `world_size` ranks."""
    return {name: train(case, world_size, rank) for name, case in (CASES | OTHER_CASES).items()}


@pytest.fixture
def heads(ranks) -> list[dict]:
    return [r["heads"] for r in ranks]


@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_virtual_workers(heads, name):
    case = CASES[name]
    expected = train(case.one_process, len(heads), None)
    # A group of two values may be close together, far from 0: see the module on accuracy.
    close = 1e-9 if case.fc else 1e-11
    torch.testing.assert_close(joined([r[name] for r in heads]), expected, rtol=close, atol=close)


def test_moving_features_equals_exchanging_statistics_in_float32(heads):
    moved, exchanged = (
        joined([r[f"float32 {exchange}"] for r in heads]) for exchange in ("features", "statistics")
    )
    torch.testing.assert_close(moved.pop("buffers"), exchanged.pop("buffers"), rtol=1e-5, atol=1e-5)
    for key, steps in exchanged.items():
        for a, b in zip(moved[key], steps, strict=True):
            # Relative to the largest: the gradient of a bias before BN is 0 but for rounding.
            scale = b.abs().max() if len(b) else 0
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(scale))


def test_worker_equals_torch_batch_norm_on_each_worker(heads):
    ours, theirs = (joined([r[name] for r in heads]) for name in ("worker, full", "torch"))
    ours["buffers"] = {k: v for k, v in ours["buffers"].items() if k in theirs["buffers"]}
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_global_equals_torch_batch_norm_on_everything(heads):
    ours = joined([r["global, full"] for r in heads])
    theirs = train(OTHER_CASES["torch"], len(heads), None)
    ours["buffers"] = {k: v for k, v in ours["buffers"].items() if k in theirs["buffers"]}
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
