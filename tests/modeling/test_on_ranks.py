"""Two ranks under DistributedDataParallel train as one process with two virtual workers does."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from bn_detect.layers import set_iteration
from bn_detect.population.averaging import average_running_statistics

from ..helpers.ranks import run_ranks
from .images import SampledImages
from .small import build, config, randomized, setting_name

RANKS, IMAGES = 2, 4
SETTINGS = (
    {"batch": "images"},
    {"batch": "worker"},
    {"batch": "shuffled"},
    {"batch": "shuffled", "exchange": "features"},
    {"batch": "global"},
)
# (RoIs, foreground) of each image; the first two are rank 0's.
COUNTS = {
    "uneven": [(7, 3), (3, 1), (9, 2), (12, 5)],
    "images without RoIs or foreground": [(8, 3), (0, 0), (7, 0), (5, 2)],
    "no foreground on rank 1": [(8, 3), (6, 2), (7, 0), (5, 0)],
    "no foreground": [(8, 0), (6, 0), (7, 0), (5, 0)],
    "one foreground RoI": [(8, 0), (6, 1), (7, 0), (5, 0)],
    "no RoIs on rank 0": [(0, 0), (0, 0), (7, 2), (5, 1)],
    "no RoIs": [(0, 0)] * 4,
}
CASES = [("mask", counts) for counts in COUNTS] + [
    (kind, counts)
    for kind in ("keypoint", "cascade", "c4")
    for counts in ("uneven", "no RoIs on rank 0")
]


def _train(kind: str, counts: str, setting: dict, images, world_size: int = 1) -> dict:
    """State after two steps, and the second step's gradients; `images`: this rank's."""
    heads = randomized(build(config(kind, **setting))).double()
    model = heads
    if world_size > 1:
        model = DistributedDataParallel(heads, broadcast_buffers=False)
    parameters = [p for p in heads.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    whole = SampledImages(range(IMAGES), COUNTS[counts])
    for step in range(2):
        set_iteration(heads, step)
        inputs = SampledImages(images, COUNTS[counts], seed=step, dtype=torch.float64)
        losses = inputs.train(model)
        optimizer.zero_grad()
        (world_size * inputs.weighted_loss(losses, whole)).backward()  # DDP takes the mean
        optimizer.step()
    average_running_statistics(heads)
    features = torch.stack(
        [inputs.features[n].grad.flatten(1).sum(1) for n in heads.in_features], dim=1
    )
    return {
        "state": heads.state_dict(),
        "gradients": {n: p.grad for n, p in heads.named_parameters() if p.requires_grad},
        "features": features / world_size,
    }


def _every_case(rank: int, world_size: int) -> dict:
    share = IMAGES // world_size
    mine = range(rank * share, (rank + 1) * share)
    results = {}
    for kind, counts in CASES:
        for setting in SETTINGS:
            case = kind, counts, setting_name(setting)
            try:
                results[case] = _train(kind, counts, setting, mine, world_size)
            except Exception as error:
                raise RuntimeError(f"{case}: {error}") from error
    return results


@pytest.fixture(scope="module")
def on_ranks() -> list[dict]:
    return run_ranks(_every_case, RANKS)


@pytest.mark.parametrize("setting", SETTINGS, ids=setting_name)
@pytest.mark.parametrize(("kind", "counts"), CASES)
def test_ranks_equal_virtual_workers(on_ranks, kind, counts, setting):
    results = [r[kind, counts, setting_name(setting)] for r in on_ranks]
    one_process = {"batch": setting["batch"], "virtual_workers": RANKS}
    expected = _train(kind, counts, one_process, range(IMAGES))
    assert all(t.isfinite().all() for t in expected["state"].values())
    tolerance = {"rtol": 1e-8, "atol": 1e-10}
    features = torch.cat([result["features"] for result in results])
    torch.testing.assert_close(features, expected["features"], **tolerance)
    for result in results:
        torch.testing.assert_close(result["gradients"], expected["gradients"], **tolerance)
        torch.testing.assert_close(dict(result["state"]), dict(expected["state"]), **tolerance)
