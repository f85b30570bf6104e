"""Population statistics of BatchNorm by PreciseBN (Wu & Johnson 2021, Section 3.1).

With the weights fixed, many mini-batches are forwarded and their moments pooled, where the moving
average that training keeps is noisy and belongs to weights that have changed since.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from ..distributed.collectives import all_gather_int, default_group, rank
from ..layers import RoIBatchNorm2d
from ..modeling.watching import WatchesRoIs
from .moments import BatchedMoments, moments, pool_over_ranks
from .undisturbed import undisturbed

logger = logging.getLogger(__name__)

ROI_SOURCES = ("train", "test")


@dataclass(frozen=True)
class LayerReport:
    """What a pass found for one layer; tensors are (C,) float64 on the CPU, over all ranks.

    Attributes:
        samples: values per channel (RoIs or images x positions) that were pooled; a layer that was
            not reached has 0 or 1 and keeps its statistics.
        standard_error: of `new_mean`, in standard deviations of the population, from how much the
            means of single batches differ; NaN after a single batch. 0.01: with other batches, an
            activation would typically move by 1% of its spread.
    """

    name: str
    samples: int
    old_mean: Tensor
    old_var: Tensor
    new_mean: Tensor
    new_var: Tensor
    standard_error: Tensor

    @property
    def updated(self) -> bool:
        return self.samples > 1

    @property
    def mean_shift(self) -> Tensor:
        """(C,) (new - old mean), in standard deviations of the new statistics."""
        return (self.new_mean - self.old_mean) / self.new_var.clamp(min=1e-12).sqrt()

    @property
    def log_var_ratio(self) -> Tensor:
        """(C,) log(new / old variance)."""
        return (self.new_var.clamp(min=1e-12) / self.old_var.clamp(min=1e-12)).log()


@dataclass(frozen=True)
class PopulationReport:
    """The layers of one pass, in the order of the model; `print` shows a table."""

    layers: tuple[LayerReport, ...]
    iterations: int

    @property
    def not_reached(self) -> list[str]:
        """Names of the layers that no value reached; their statistics are as before."""
        return [layer.name for layer in self.layers if not layer.updated]

    def __str__(self) -> str:
        rows = [
            [
                layer.name,
                layer.samples,
                layer.mean_shift.square().mean().sqrt().item(),
                layer.log_var_ratio.square().mean().sqrt().item(),
                layer.standard_error.square().mean().sqrt().item(),
            ]
            if layer.updated
            else [layer.name, "not reached", None, None, None]
            for layer in self.layers
        ]
        return tabulate(
            rows,
            headers=[
                "layer",
                "values",
                "mean shift (sigma)",
                "log var ratio",
                "std. error (sigma)",
            ],
            floatfmt=".3f",
        )


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
        model: any module with BatchNorm1d/2d/3d, SyncBatchNorm, RoIBatchNorm2d or
            NaiveSyncBatchNorm, in DistributedDataParallel or not; called as `model(batch)`.
        loader: batches; at least `num_iters` of them on every rank.
        modules: dotted prefixes, such as ("backbone", "roi_heads.box_head"); None: every layer.
        roi_source: "train": the model runs as in training (sampled RoIs, ground truth added);
            "test": as in inference (the proposals for the box head, the detections for the others).
        progress: show a bar on rank 0.

    Returns:
        What was found per layer. Layers that no value reached keep their statistics, are listed
        in it, and warned about.

    Raises:
        ValueError: `modules` that match no BN layer, no BN layer at all, an unknown `roi_source`,
            `num_iters` below 1, or a loader that ends early on any rank (on every rank).
    """
    if roi_source not in ROI_SOURCES:
        raise ValueError(
            f"roi_source is {roi_source!r}; it must be one of {', '.join(ROI_SOURCES)}"
        )
    if num_iters < 1:
        raise ValueError(f"num_iters is {num_iters}; it must be at least 1")
    model = unwrapped(model)
    layers = select_bn_layers(model, modules)
    found = {
        name: BatchedMoments(layer.num_features, layer.running_mean.device)
        for name, layer in layers.items()
    }
    with undisturbed(model), _collecting(model, layers, found, roi_source):
        _forward_batches(model, loader, num_iters, list(found.values()), progress)

    pool_over_ranks(list(found.values()), default_group())
    report = PopulationReport(
        tuple(_write(name, layers[name], found[name]) for name in layers), num_iters
    )
    if report.not_reached:
        logger.warning(
            "PreciseBN: no values reached %s; their statistics are unchanged.",
            ", ".join(report.not_reached),
        )
    return report


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
def _write(name: str, layer: _BatchNorm, found: BatchedMoments) -> LayerReport:
    pooled = found.total
    old_mean, old_var = (b.double().cpu().clone() for b in (layer.running_mean, layer.running_var))
    new_mean, new_var = old_mean, old_var
    if pooled.count > 1:
        var = pooled.m2 / (pooled.count - 1)
        layer.running_mean.copy_(pooled.mean)
        layer.running_var.copy_(var)
        if isinstance(layer, RoIBatchNorm2d):
            layer.ema_weight.fill_(1)
        new_mean, new_var = pooled.mean.cpu(), var.cpu()
    error = found.standard_error().cpu()
    return LayerReport(name, pooled.count, old_mean, old_var, new_mean, new_var, error)


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
    found: dict[str, BatchedMoments],
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
            handles += _observe(layer, found[name])
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def _observe(layer: _BatchNorm, found: BatchedMoments) -> list[RemovableHandle]:
    """Pool what `layer` sees."""

    def compute(_, args: tuple, kwargs: dict) -> None:
        found.add((*args, *kwargs.values())[0].detach())

    def forget(*_) -> None:
        layer.running_mean.zero_()
        layer.running_var.zero_()

    def read(_, args: tuple, kwargs: dict, y: Tensor) -> None:
        if not y.numel():
            return
        count = y.numel() // y.shape[1]
        mean, m2 = layer.running_mean.double(), layer.running_var.double() * (count - 1)
        # Far from zero, float32 and the layer's algorithm may be too coarse.
        far = mean.square() * count > 100 * m2
        if far.any():
            x = (*args, *kwargs.values())[0].detach()
            mean[far], m2[far] = moments(x[:, far])
        found.add_moments(count, mean, m2)

    own_forward = getattr(layer.forward, "__func__", None) is _BatchNorm.forward
    if not own_forward or not layer.track_running_stats:
        return [layer.register_forward_pre_hook(compute, with_kwargs=True)]
    # torch's layers compute the moments anyway: with momentum 1 the buffers are those of the call.
    layer.momentum = 1.0
    return [
        layer.register_forward_pre_hook(forget),
        layer.register_forward_hook(read, with_kwargs=True),
    ]
