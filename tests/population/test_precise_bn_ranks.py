"""Population statistics of several ranks are those of one process on all their data."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d, RoILayout
from bn_detect.population import update_population_stats
from tests.helpers.ranks import run_ranks
from tests.modeling.images import model_inputs
from tests.modeling.small import config

from .snapshot import Recorder, Snapshot, assert_statistics, population

C = 3
# Samples in each batch of each rank: unequal, and none at all.
SHARES = [
    [[4, 1], [2, 6], [1, 1], [3, 5]],
    [[5, 0], [0, 0], [0, 7], [1, 0]],
    [[0, 0], [3, 2], [0, 0], [0, 0]],
]


def share(sizes: list[int], rank: int, mean: float = 1.0, sigma: float = 1.0) -> list[Tensor]:
    """A rank's batches in float64; ranks differ in mean."""
    g = torch.Generator().manual_seed(rank)
    shape = (C, 2, 3)
    return [
        mean + sigma * (rank + torch.randn(n, *shape, generator=g, dtype=torch.float64))
        for n in sizes
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(C, C, 1), RoIBatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C)]
    return nn.Sequential(*layers).double()


def update(model: nn.Module, batches: list, **kwargs):
    return update_population_stats(model, batches, len(batches), progress=False, **kwargs)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return {name: value.clone() for name, value in model.state_dict().items()}


def on_one_process(shares: list[list[int]]) -> dict[str, Tensor]:
    """Each batch of a rank is a normalization batch, there and here."""
    model = network()
    batches = [b for rank, sizes in enumerate(shares) for b in share(sizes, rank)]
    update(model, batches, images_per_group=None)
    return buffers(model)


def on_rank(rank: int, world_size: int, folder: Path) -> dict[int, dict]:
    """The cases on the first 2, the first 3 and all 4 ranks, for processes take long to start."""
    results = {}
    dist.destroy_process_group()
    for size in (2, 3, world_size):
        if rank < size:
            store = dist.FileStore(str(folder / f"store{size}"), size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
            results[size] = cases(rank, size)
            if size < world_size:
                dist.destroy_process_group()
    return results


def cases(rank: int, world_size: int) -> dict:
    """What the rank holds after each."""
    results = {}
    for i, shares in enumerate(SHARES):
        model = network()
        report = update(model, share(shares[rank], rank), images_per_group=None)
        results[f"shares {i}"] = buffers(model), report

    model = DistributedDataParallel(network())
    before = Snapshot(model)
    report = update(model, share(SHARES[0][rank], rank), images_per_group=None)
    before.assert_unchanged(statistics=False)
    results["ddp"] = buffers(model), report

    far = nn.BatchNorm2d(C).double()
    update(far, share(SHARES[0][rank], rank, 1e6, 1e-4))
    results["far"] = buffers(far), None

    for batch in ("shuffled", "global"):
        layer = RoIBatchNorm2d(C, layout=RoILayout(NormalizationBatch(batch))).double()
        update(layer, share(SHARES[1][rank], rank))
        results[batch] = buffers(layer), None
    for mode, shares in (("", SHARES[0]), ("N", SHARES[1])):
        naive = NaiveSyncBatchNorm(C, stats_mode=mode).double()
        update(naive, share(shares[rank], rank))
        results[f"naive {mode}"] = buffers(naive), None

    model = network()
    before = Snapshot(model)
    some = share([2, 2, 2], rank)[: 3 - (rank == world_size - 1)]
    with pytest.raises(ValueError) as error:
        update_population_stats(model, some, 3, progress=False)
    before.assert_unchanged()
    results["ended"] = {}, str(error.value)
    return results | (detectors(rank) if world_size == 2 else {})


def detectors(rank: int) -> dict:
    """A whole model under shuffles between ranks; one of them has images without objects."""
    results = {}
    for source in ("train", "test"):
        for exchange in ("statistics", "features"):
            torch.manual_seed(0)
            model = build_model(config("mask", batch="shuffled", exchange=exchange))
            seen = Recorder(model)
            batches = [model_inputs(2 - rank, seed=i, objects=3 - 3 * rank) for i in range(2)]
            report = update(DistributedDataParallel(model), batches, roi_source=source)
            results[f"{source} {exchange}"] = buffers(model), (seen.inputs, report.not_reached)
    return results


@pytest.fixture(scope="module")
def found_by_size(tmp_path_factory):
    return run_ranks(on_rank, 4, tmp_path_factory.mktemp("stores"))


@pytest.fixture(params=[2, 3, 4])
def found(request, found_by_size):
    """Results of every rank."""
    return [results[request.param] for results in found_by_size[: request.param]]


def test_all_ranks_hold_the_same(found):
    for case in found[0]:
        for other in found[1:]:
            ours, theirs = found[0][case][0], other[case][0]
            assert ours.keys() == theirs.keys()
            statistics = [name for name in ours if "running" in name]
            assert all(torch.equal(ours[name], theirs[name]) for name in statistics), case


def test_ranks_are_one_process_on_all_data(found):
    for case, shares in [*enumerate(SHARES), ("ddp", SHARES[0])]:
        name = case if case == "ddp" else f"shares {case}"
        expected = on_one_process(shares[: len(found)])
        for rank in found:
            state, report = rank[name]
            torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-12)
            count = 6 * sum(sum(sizes) for sizes in shares[: len(found)])
            assert [layer.samples for layer in report.layers] == [count, count]


def test_one_process_is_the_closed_form():
    model = network()
    batches = [b for rank in range(4) for b in share(SHARES[0][rank], rank)]
    update(model, batches)
    assert_statistics(model[1], [model[0](b).detach() for b in batches], rtol=1e-12)


def test_far_from_zero(found):
    values = [b - 1e6 for r in range(len(found)) for b in share(SHARES[0][r], r, 1e6, 1e-4)]
    mean, var = population(values)
    state = found[0]["far"][0]
    torch.testing.assert_close(state["running_var"], var, rtol=1e-5, atol=0)
    torch.testing.assert_close(state["running_mean"] - 1e6, mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layer", ["shuffled", "global", "naive ", "naive N"])
def test_layers_with_a_batch_over_ranks(found, layer):
    shares = SHARES[0] if layer == "naive " else SHARES[1]
    mean, var = population([b for r in range(len(found)) for b in share(shares[r], r)])
    state = found[0][layer][0]
    torch.testing.assert_close(state["running_mean"], mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state["running_var"], var, rtol=1e-12, atol=1e-12)
    assert state["num_batches_tracked"] == 0


def test_a_loader_that_ends_early_is_the_same_error_everywhere(found):
    last = len(found) - 1
    message = f"the loader ended on rank {last} after 2 of num_iters = 3 batches"
    assert {rank["ended"][1] for rank in found} == {f"{message}; the statistics are unchanged"}


def test_detectors(found_by_size):
    found = [results[2] for results in found_by_size[:2]]
    for case in ("train statistics", "test statistics", "train features", "test features"):
        inputs = [rank[case][1][0] for rank in found]
        assert found[0][case][1][1] == []
        for name in inputs[0]:
            layer = RoIBatchNorm2d(len(found[0][case][0][f"{name}.running_mean"]))
            for part in ("running_mean", "running_var"):
                getattr(layer, part).copy_(found[0][case][0][f"{name}.{part}"])
            batches = [b for rank in inputs for b in rank[name]]
            assert len(batches) == 4
            assert_statistics(layer, batches)


@pytest.mark.parametrize("source", ["train", "test"])
def test_both_exchanges_find_the_same(found_by_size, source):
    statistics, features = (
        found_by_size[0][2][f"{source} {exchange}"][0] for exchange in ("statistics", "features")
    )
    torch.testing.assert_close(features, statistics, rtol=1e-4, atol=1e-5)
