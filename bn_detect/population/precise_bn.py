"""Population statistics of BatchNorm by PreciseBN (Wu & Johnson 2021, Section 3.1).

With the weights fixed, many mini-batches are forwarded and their moments pooled, where the moving
average that training keeps is noisy and belongs to weights that have changed since.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from ..distributed.collectives import all_gather_int, default_group, rank
from ..layers import RoIBatchNorm2d
from ..layers.statistics import use_statistics
from ..layers.watching import WatchesRoIs
from .moments import BatchedMoments, pool_over_ranks
from .observe import observe, populations
from .report import LayerReport, PopulationReport
from .undisturbed import undisturbed

logger = logging.getLogger(__name__)

ROI_SOURCES = ("train", "test")


def update_population_stats(
    model: nn.Module,
    loader: Iterable,
    num_iters: int,
    *,
    modules: Sequence[str] | None = None,
    roi_source: str = "train",
    progress: bool = True,
) -> PopulationReport:
    """Replace the running statistics of BN layers by those of the population `loader` draws from.

    `num_iters` batches per rank are forwarded with fixed weights. The layers asked for normalize
    with their mini-batch statistics; mean and variance of what they see are pooled over all calls
    and all ranks: the variance between batches included, every value counting once, unbiased. Every
    rank ends with the same buffers. A collective; each rank calls it with data of its own.

    Whatever happens, parameters, momentum, modes, hooks, other buffers and the states of the random
    number generators are as before; if anything is raised, the statistics too.

    Args:
        model: any module with BatchNorm1d/2d/3d, SyncBatchNorm, RoIBatchNorm2d, LevelBatchNorm2d
            (each population by itself) or NaiveSyncBatchNorm, in DistributedDataParallel or not;
            called as `model(batch)`.
        loader: batches; at least `num_iters` of them on every rank.
        modules: dotted prefixes, such as ("backbone", "roi_heads.box_head"); None: every layer.
        roi_source: "train": the model runs as in training (sampled RoIs, ground truth added);
            "test": as in inference (the proposals for the box head, the detections for the others).
        progress: show a bar on rank 0.

    Returns:
        What was found per layer. Layers that no value reached, or values that are not finite, keep
        their statistics, are listed in it, and warned about.

    Raises:
        ValueError: `modules` that match no BN layer, no BN layer at all, an unknown `roi_source`,
            `num_iters` below 1, or a loader that ends early on any rank (on every rank).
    """
    check_pass(num_iters, roi_source)
    model = unwrapped(model)
    layers = select_bn_layers(model, modules)
    found = {
        name: [
            BatchedMoments(layer.num_features, layer.running_mean.device)
            for _ in range(populations(layer))
        ]
        for name, layer in layers.items()
    }
    every = [each for of_layer in found.values() for each in of_layer]
    # Layers need their groups in eval mode too, in which heads do not move RoIs.
    in_place = use_statistics(model, exchange="statistics")
    with undisturbed(model), in_place, _collecting(model, layers, found, roi_source):
        _forward_batches(model, loader, num_iters, every, progress)

    pool_over_ranks(every, default_group())
    report = PopulationReport(
        tuple(r for name, layer in layers.items() for r in _write(name, layer, found[name])),
        num_iters,
    )
    if report.not_reached:
        logger.warning(
            "PreciseBN: no values reached %s; their statistics are unchanged.",
            ", ".join(report.not_reached),
        )
    if report.not_finite:
        logger.warning(
            "PreciseBN: what reached %s is not finite; their statistics are unchanged.",
            ", ".join(report.not_finite),
        )
    return report


def check_pass(num_iters: int, roi_source: str) -> None:
    """Raise ValueError for a value that `update_population_stats` does not take."""
    if roi_source not in ROI_SOURCES:
        raise ValueError(
            f"roi_source is {roi_source!r}; it must be one of {', '.join(ROI_SOURCES)}"
        )
    if num_iters < 1:
        raise ValueError(f"num_iters is {num_iters}; it must be at least 1")


def select_bn_layers(model: nn.Module, modules: Sequence[str] | None) -> dict[str, _BatchNorm]:
    """The BN layers with running statistics under the dotted prefixes, by name; None: all.

    Raises:
        ValueError: a prefix that matches none, no prefix, or there is no such layer at all.
    """
    every = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None
    }
    if not every:
        raise ValueError("the model has no BatchNorm layer with running statistics")
    if modules is None:
        return every
    modules = [modules] if isinstance(modules, str) else list(modules)
    if not modules:
        raise ValueError("modules is empty, which matches no BatchNorm layer; None means all")
    chosen = {p: [n for n in every if n == p or n.startswith(f"{p}.")] for p in modules}
    for prefix, names in chosen.items():
        if not names:
            tops = sorted({name.rsplit(".", 2)[0] for name in every})
            raise ValueError(
                f"modules: {prefix!r} matches no BatchNorm layer; some are in {', '.join(tops)}"
            )
    wanted = {name for names in chosen.values() for name in names}
    return {name: layer for name, layer in every.items() if name in wanted}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel or DataParallel, or itself."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


@torch.no_grad()
def _write(name: str, layer: _BatchNorm, found: list[BatchedMoments]) -> Iterator[LayerReport]:
    if len(found) == 1:
        yield _write_one(name, layer.running_mean, layer.running_var, found[0])
    else:
        for level, each in enumerate(found):
            yield _write_one(f"{name}.level{level}", *layer.statistics_of(level), each)
    if isinstance(layer, RoIBatchNorm2d) and found[0].total.count > 1:
        layer.ema_weight.fill_(1)


def _write_one(name: str, mean: Tensor, var: Tensor, found: BatchedMoments) -> LayerReport:
    """Put what was found into the (C,) buffers `mean` and `var`."""
    pooled = found.total
    old_mean, old_var = (b.double().cpu().clone() for b in (mean, var))
    new_mean, new_var = old_mean, old_var
    unbiased = pooled.m2 / max(pooled.count - 1, 1)
    # As the buffers hold them: what float64 can express may be too much for float32.
    finite = all(bool(t.isfinite().all()) for t in (pooled.mean.to(mean), unbiased.to(var)))
    if pooled.count > 1 and finite:
        mean.copy_(pooled.mean)
        var.copy_(unbiased)
        new_mean, new_var = pooled.mean.cpu(), unbiased.cpu()
    error = found.standard_error().cpu()
    return LayerReport(name, pooled.count, old_mean, old_var, new_mean, new_var, error, finite)


@torch.no_grad()
def _forward_batches(
    model: nn.Module,
    loader: Iterable,
    num_iters: int,
    found: list[BatchedMoments],
    progress: bool,
) -> None:
    process_group = default_group()
    device = found[0].within.device
    batches, end = iter(loader), object()
    hidden = not progress or rank(process_group) != 0
    for done in tqdm(range(num_iters), desc="PreciseBN", disable=hidden, leave=False):
        batch = next(batches, end)
        # All stop at the same batch: layers may be waiting for one another.
        ended = all_gather_int(int(batch is end), device, process_group)
        if any(ended):
            where = f" on rank {ended.index(1)}" if process_group is not None else ""
            raise ValueError(
                f"the loader ended{where} after {done} of num_iters = {num_iters} batches; the "
                "statistics are unchanged"
            )
        with EventStorage(1):  # Detectron2's models log in training, and draw at iteration 0
            model(batch)
        for each in found:
            each.end_batch()


@contextlib.contextmanager
def _collecting(
    model: nn.Module,
    layers: dict[str, _BatchNorm],
    found: dict[str, list[BatchedMoments]],
    roi_source: str,
) -> Iterator[None]:
    """The model in the mode of `roi_source`, the layers on mini-batch statistics and observed."""
    handles: list[RemovableHandle] = []
    momenta = {layer: layer.momentum for layer in layers.values()}
    try:
        if roi_source == "test":
            model.eval()
        elif not model.training:
            model.train()
        for module in model.modules():
            if isinstance(module, WatchesRoIs):
                module.watch(True)  # the layers need their layouts in inference mode too
        for name, layer in layers.items():
            layer.training = True
            handles += observe(layer, found[name])
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum
