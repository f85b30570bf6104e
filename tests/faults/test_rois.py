"""RoIs that are few, many or none, on two ranks, against one process in float64."""

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bn_detect.distributed.collectives import all_gather_int
from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout
from bn_detect.population.averaging import average_running_statistics
from tests.helpers.ranks import run_ranks
from tests.layers.reference import EPS, affine, features, grouped_reference, loss

RANKS, IMAGES, CHANNELS = 2, 2, 3  # images per rank
BATCHES = ("images", "worker", "shuffled", "global")


class Split(NamedTuple):
    """RoIs of each image of all ranks, positions of a RoI, and what normalizes them."""

    counts: tuple[int, ...]
    positions: tuple[int, ...] = (3, 3)
    batch: str = "worker"
    images_per_group: int = 1
    amp: bool = False
    seed: int = 0


NAMED = {
    "0 RoIs on one rank": Split((0, 0, 5, 3)),
    "0 RoIs on the other rank": Split((5, 3, 0, 0)),
    "0 RoIs on all ranks": Split((0, 0, 0, 0)),
    "0 RoIs in an image of each rank": Split((0, 4, 5, 0)),
    "one RoI of 1x1 in all": Split((0, 0, 1, 0), (1, 1)),
    "one RoI of 1x1 on each rank": Split((1, 0, 0, 1), (1, 1)),
    "one RoI of a fully connected layer": Split((0, 1, 0, 0), ()),
    "1,000 images' worth on one rank, none on the other": Split((60_000, 4_000, 0, 0), (1, 2)),
}


def check(rank: int, split: Split) -> None:
    """Forward, backward and moving average of this rank's part. A collective."""
    x = features(sum(split.counts), CHANNELS, *split.positions, seed=split.seed)
    own = split.counts[rank * IMAGES : (rank + 1) * IMAGES]
    start = sum(split.counts[: rank * IMAGES])
    layout = RoILayout(
        NormalizationBatch(split.batch, images_per_group=split.images_per_group, seed=split.seed)
    )
    layout.record(list(own))
    dtype = torch.float32 if split.amp else torch.float64
    layer = RoIBatchNorm2d(CHANNELS, dtype=dtype, layout=layout)
    with torch.no_grad():
        for parameter, value in zip((layer.weight, layer.bias), affine(CHANNELS), strict=True):
            parameter.copy_(value)
    h = _as_a_layer_gives_it(x[start : start + sum(own)], split.amp).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=split.amp):
        y = layer(h)
    loss(y).backward()
    partition = layout.partition(sum(own), x.device)  # of this forward
    group, num_groups = partition.group, partition.num_groups
    average_running_statistics(layer)
    if partition.process_group is None:  # the groups are this rank's own
        group, num_groups = group + rank * num_groups, num_groups * RANKS
    parts: list = [None] * RANKS
    dist.all_gather_object(
        parts, (group, h.detach().double(), y.detach().double(), h.grad.double())
    )
    group, h, y, dx = (torch.cat(part) for part in zip(*parts, strict=True))
    _compare(split, layer, h, group, num_groups, y, dx)


def _as_a_layer_gives_it(x: Tensor, amp: bool) -> Tensor:
    """x, or under autocast what a convolution by the identity makes of it: bfloat16."""
    if not amp:
        return x.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = x.float().reshape(len(x), CHANNELS, 1, x.shape[2:].numel())
        return F.conv2d(values, torch.eye(CHANNELS)[:, :, None, None]).reshape(x.shape).detach()


def _compare(split: Split, layer, h, group, num_groups, y, dx) -> None:
    h = h.clone().requires_grad_()
    population = torch.zeros(CHANNELS).double(), torch.ones(CHANNELS).double()
    single = h.shape[2:].numel() == 1
    expected, mean, var, count = grouped_reference(
        h, *affine(CHANNELS), group, num_groups, EPS, population if single else None
    )
    loss(expected).backward()
    # bfloat16 has 8 bits; the loss is cubic in y.
    close = {"rtol": 0.02, "atol": 0.03} if split.amp else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(y, expected.detach(), **close)
    if split.amp:
        scale = h.grad.abs().max().item() if len(h) else 0.0
        assert not len(h) or (dx - h.grad).abs().max().item() <= 0.1 * scale + 0.03
    else:
        torch.testing.assert_close(dx, h.grad, **close)
    several, count = count > 1, count.double()
    share = 0.1 * several.double().mean().item()
    for buffer, old, new in (
        (layer.running_mean, population[0], mean),
        (layer.running_var, population[1], var * (count / (count - 1).clamp(min=1))[:, None]),
    ):
        new = new[several].mean(0) if several.any() else old
        wanted = (0.9 * old + share * new) / (0.9 + share)
        rounding = 1e-5 if split.amp else 1e-9
        torch.testing.assert_close(buffer.double(), wanted, rtol=rounding, atol=rounding)


def agreed(rank: int, split: Split) -> None:
    """`check`, which fails on all ranks or on none: so they go on together."""
    error = None
    try:
        check(rank, split)
    except AssertionError as found:
        error = found
    failed = all_gather_int(int(error is not None), torch.device("cpu"), dist.group.WORLD)
    assert not any(failed), f"{split}: {error or 'on the other rank'}"


def on_rank(rank: int, world_size: int, examples: int) -> dict[str, str]:
    results = {}
    for name, split in NAMED.items():
        for amp in (False, True):
            try:
                for batch in BATCHES:
                    agreed(rank, split._replace(batch=batch, amp=amp))
                results[f"{name}{' with AMP' * amp}"] = ""
            except AssertionError as error:
                results[f"{name}{' with AMP' * amp}"] = str(error)
    tried = []

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        counts=st.tuples(*[st.integers(0, 6)] * (RANKS * IMAGES)),
        positions=st.sampled_from([(), (1, 1), (2,), (3, 2)]),
        batch=st.sampled_from(BATCHES),
        images_per_group=st.integers(1, 3),
        amp=st.booleans(),
        seed=st.integers(0, 99),
    )
    def any_split(**drawn) -> None:
        split = Split(**drawn)
        tried.append(split)
        agreed(rank, split)

    try:
        any_split()
        results["random"] = ""
    except AssertionError as error:
        results["random"] = str(error)
    results["tried"] = str(len(tried))
    return results


@pytest.fixture(scope="module")
def results(size) -> dict[str, str]:
    ranks = run_ranks(on_rank, RANKS, size(20, 200), timeout=600)
    return {key: ranks[0][key] or ranks[1][key] for key in ranks[0]}


@pytest.mark.parametrize("amp", [False, True], ids=["float64", "AMP"])
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.fault(
    "{name} (AMP: {amp})",
    should="no hang, nothing that is not finite; outputs, gradients and moving averages of one "
    "process in float64, for each of the four batches",
)
def test_named(name, amp, results, happened):
    found = results[f"{name}{' with AMP' * amp}"]
    assert not found, found
    happened("equal" + (" within bfloat16's rounding" if amp else " to 1e-9"))


@pytest.mark.fault(
    "random splits over ranks and images, sizes of RoIs, batches, with and without AMP",
    should="what one process in float64 gives",
)
def test_random(results, size, happened):
    assert not results["random"], results["random"]
    assert int(results["tried"]) >= size(20, 200)
    happened(f"{results['tried']} splits by hypothesis, all equal")
