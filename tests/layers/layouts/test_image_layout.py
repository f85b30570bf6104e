"""`convert_batchnorm`: BatchNorm over groups of images, against torch's on each group."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bn_detect import update_population_stats
from bn_detect.layers import ImageLayout, convert_batchnorm
from bn_detect.population.averaging import average_running_statistics

IMAGES = 12
BATCHES = ("worker", "shuffled", "global", "images")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    net = nn.Sequential(*layers).double()
    for bn in (net[1], net[4]):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.bias)
    return net


def images(number: int = IMAGES) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(number, 2, 5, 4, dtype=torch.float64, generator=generator)
    return x * torch.rand(number, 1, 1, 1, dtype=torch.float64, generator=generator) + x[:, :, :1]


def outcome(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients of a loss over them, running statistics."""
    x = x.clone().requires_grad_()
    y = net(x)
    (
        y.square() * torch.linspace(0, 1, y[0].numel(), dtype=y.dtype).view(y.shape[1:])
    ).sum().backward()
    grads = {f"d{name}": p.grad for name, p in net.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **grads, **dict(net.named_buffers())}


@pytest.mark.parametrize(("number", "size"), [(12, 1), (12, 2), (12, 4), (7, 3), (5, 8)])
def test_each_group_is_normalized_as_torch_does_it_alone(number, size):
    ours = convert_batchnorm(network(), images_per_group=size)
    found = outcome(ours, images(number))
    momentum, chunks = 0.1, []
    for chunk in images(number).split(size):  # the last one is smaller where it does not divide
        net = network()
        chunks.append(outcome(net, chunk))
    for key in ("y", "dx"):
        torch.testing.assert_close(found[key], torch.cat([c[key] for c in chunks]))
    for key in chunks[0]:
        if key.startswith("d") and key != "dx":
            torch.testing.assert_close(found[key], sum(c[key] for c in chunks))
    # Each chunk made one step from (0, 1); ours made one with the mean of what the chunks have.
    for key in ("1.running_mean", "4.running_var"):
        torch.testing.assert_close(found[key], torch.stack([c[key] for c in chunks]).mean(0))
    assert momentum == ours[1].momentum


def test_all_images_together_are_torchs_batch_norm():
    theirs = outcome(network(), images())
    for batch in ("worker", "global", "shuffled"):
        ours = outcome(convert_batchnorm(network(), batch), images())
        torch.testing.assert_close({k: ours[k] for k in theirs}, theirs)


def test_virtual_workers_are_chunks():
    ours = outcome(convert_batchnorm(network(), "worker", virtual_workers=3), images())
    groups = outcome(convert_batchnorm(network(), images_per_group=IMAGES // 3), images())
    torch.testing.assert_close(ours, groups)
    with pytest.raises(
        ValueError, match="VIRTUAL_WORKERS is 5, which does not divide the 12 images"
    ):
        convert_batchnorm(network(), "worker", virtual_workers=5)(images())


def test_shuffles_are_balanced_and_fresh_and_shared_by_the_layers():
    net = convert_batchnorm(network(), "shuffled", virtual_workers=4)
    seen = []
    for layer in (net[1], net[4]):
        layer.register_forward_hook(
            lambda m, args, _: seen.append(m.layout.partition(len(args[0]), args[0].device).group)
        )
    for _ in range(3):
        net(images())
    assert all(torch.bincount(group).tolist() == [3] * 4 for group in seen)
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert len({tuple(group.tolist()) for group in seen}) == 3


def test_mini_batch_statistics_at_inference():
    net = convert_batchnorm(network(), images_per_group=2)
    net(images())
    net.eval()
    assert isinstance(net[1].layout, ImageLayout)
    population = net(images())
    net = convert_batchnorm(network(), test_stats="minibatch", test_images_per_group=4).eval()
    expected = torch.cat([network()(chunk) for chunk in images().split(4)])
    torch.testing.assert_close(net(images()), expected)
    assert not torch.allclose(population, expected)


def test_precise_bn_pools_all_values_however_the_images_are_grouped():
    batches = images(24).split(8)
    net = convert_batchnorm(network(), images_per_group=2)
    update_population_stats(net, batches, len(batches), progress=False)
    seen = network()[0](images(24)).transpose(0, 1).flatten(1)  # before the first BN
    torch.testing.assert_close(net[1].running_mean, seen.mean(1))
    torch.testing.assert_close(net[1].running_var, seen.var(1))


def test_copies_are_of_the_same_kind():
    net = copy.deepcopy(convert_batchnorm(network(), images_per_group=3))
    assert type(net[1].layout) is ImageLayout and net[1].layout is net[4].layout
    torch.testing.assert_close(
        net(images()), convert_batchnorm(network(), images_per_group=3)(images())
    )


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no BatchNorm layer in Conv2d"):
        convert_batchnorm(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="images_per_group is 0"):
        convert_batchnorm(network(), images_per_group=0)
    with pytest.raises(ValueError, match="^batch is 'ghost'"):
        convert_batchnorm(network(), "ghost")


def on_rank(rank: int, world_size: int) -> dict[str, dict[str, Tensor]]:
    """Two steps on this rank's share of the images under each batch; the statistics averaged."""
    found = {}
    for batch in BATCHES:
        net = convert_batchnorm(network(), batch, images_per_group=2, seed=3)
        share = images().chunk(world_size)[rank]
        net(share)
        found[batch] = outcome(net, share)
        average_running_statistics(net)
        found[batch] |= {k: v.clone() for k, v in net.named_buffers()}
    return found


@pytest.mark.parametrize("batch", BATCHES)
def test_ranks_are_virtual_workers(ranks, batch):
    world_size = len(ranks)
    net = convert_batchnorm(
        network(), batch, images_per_group=2, virtual_workers=world_size, seed=3
    )
    net(images())
    expected = outcome(net, images())
    each = [found["images"][batch] for found in ranks]
    for key, value in expected.items():
        if key in ("y", "dx"):
            torch.testing.assert_close(torch.cat([f[key] for f in each]), value)
        elif key.startswith("d"):
            torch.testing.assert_close(sum(f[key] for f in each), value)
        else:
            for found in each:
                torch.testing.assert_close(found[key], value)
