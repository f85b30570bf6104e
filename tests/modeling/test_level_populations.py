"""Population statistics of feature levels: by PreciseBN, and of a head trained on ranks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bn_detect.layers import LevelBatchNorm2d
from bn_detect.population import update_population_stats
from tests.helpers.ranks import run_ranks

from .level_heads import CHANNELS, CHOICES, CLOSE, SIZES, features, retinanet_head


def pooled(batches: list[list[Tensor]], levels: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of all positions of these levels in all batches."""
    values = torch.cat(
        [batch[level].movedim(1, -1).reshape(-1, CHANNELS) for batch in batches for level in levels]
    )
    return values.mean(0), values.var(0)


@pytest.mark.parametrize("source", ["train", "test"])
@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(c.values()))
def test_precise_bn_of_each_population(choices, source):
    """Of a layer that sees the features themselves, so that its population is known."""
    layer = LevelBatchNorm2d(CHANNELS, len(SIZES), **choices, dtype=torch.float64)
    model = nn.Sequential(layer)
    batches = [features(images, seed) for seed, images in enumerate((2, 1, 3))]
    report = update_population_stats(model, batches, 3, roi_source=source, progress=False)
    per_level = choices["population"] == "level"
    assert [each.name for each in report.layers] == (
        [f"0.level{level}" for level in range(len(SIZES))] if per_level else ["0"]
    )
    every = list(range(len(SIZES)))
    for level in every:
        expected = pooled(batches, [level] if per_level else every)
        torch.testing.assert_close(layer.statistics_of(level), expected, **CLOSE)


@pytest.mark.parametrize("batch", ["shared", "level"])
def test_precise_bn_normalizes_as_the_head_then_does(batch):
    """A second layer gets what the first makes of each level with the statistics of that level."""
    choices = {"batch": batch, "population": "level", "affine": "shared"}
    first, second = (LevelBatchNorm2d(CHANNELS, len(SIZES), **choices).double() for _ in range(2))
    model, xs = nn.Sequential(first, second), features(4)
    update_population_stats(model, [xs], 1, progress=False)
    assert first.batch == second.batch == batch
    for y in model.eval()(xs):
        mean, var = pooled([[y]], [0])
        count = y[:, 0].numel()  # the variance in training is biased, that of the population is not
        expected = torch.zeros_like(mean), torch.full_like(var, 1 - 1 / count)
        torch.testing.assert_close((mean, var), expected, rtol=1e-3, atol=1e-3)


def trained(images: range, total: int, wrap=lambda model: model) -> dict[str, Tensor]:
    """State after two steps on these images of `total`, then PreciseBN, by choices."""
    result = {}
    for choices in CHOICES:
        model = retinanet_head("SyncBN", **choices)
        wrapped = wrap(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in range(2):
            outputs = wrapped([x[images.start : images.stop] for x in features(total, seed)])
            loss = sum(y.square().sum() for ys in outputs for y in ys) / total
            optimizer.zero_grad()
            (loss if wrapped is model else 2 * loss).backward()  # DDP takes the mean
            optimizer.step()
        name = "-".join(choices.values())
        result |= {f"{name}.{k}": v.clone() for k, v in model.state_dict().items()}
        update_population_stats(
            model, [[x[images.start : images.stop] for x in features(total, 7)]], 1, progress=False
        )
        result |= {f"{name}.precise.{k}": v for k, v in model.state_dict().items()}
    return result


def on_rank(rank: int, world_size: int) -> dict[str, Tensor]:
    return trained(
        range(3) if rank == 0 else range(3, 4),
        4,
        lambda model: DistributedDataParallel(model, broadcast_buffers=False),
    )


def test_ranks_train_as_one_process_does():
    ranks = run_ranks(on_rank, 2)
    expected = trained(range(4), 4)
    for state in ranks:
        torch.testing.assert_close(state, expected, rtol=1e-8, atol=1e-9)
