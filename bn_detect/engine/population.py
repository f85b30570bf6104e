"""Population statistics of BatchNorm by PreciseBN (Wu & Johnson 2021, Section 3.1).

With the weights fixed, many mini-batches are forwarded and their moments pooled, where the moving
average that training keeps is noisy and belongs to weights that have changed since.
"""

import contextlib
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..distributed.collectives import all_gather_int, all_reduce_sum, default_group, rank
from ..layers import RoIBatchNorm2d
from ..layers.grouped_batch_norm import group_statistics
from ..modeling.watching import WatchesRoIs

logger = logging.getLogger(__name__)

ROI_SOURCES = ("train", "test")


@dataclass(frozen=True)
class LayerReport:
    """What a pass found for one layer; tensors are (C,) float64 on the CPU, over all ranks.

    Attributes:
        samples: values per channel (RoIs or images x positions) that were pooled; a layer that was
            not reached has 0 or 1 and keeps its statistics.
        standard_error: of `new_mean`, in standard deviations of the population, from how much the
            means of single calls differ. 0.01 means that the statistics are known well enough to
            move an activation by 1% of its spread.
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
    model = model.module if isinstance(model, DistributedDataParallel) else model
    layers = select_bn_layers(model, modules)
    moments = {name: _Moments(layer) for name, layer in layers.items()}
    with _undisturbed(model), _collecting(model, layers, moments, roi_source):
        _forward_batches(model, loader, num_iters, progress)

    _pool_over_ranks(list(moments.values()))
    report = PopulationReport(
        tuple(_write(name, layers[name], found) for name, found in moments.items()), num_iters
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
        ValueError: a prefix that matches none, or there is none at all.
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
    chosen = {p: [n for n in every if n == p or n.startswith(f"{p}.")] for p in modules}
    for prefix, names in chosen.items():
        if not names:
            tops = sorted({name.rsplit(".", 2)[0] for name in every})
            raise ValueError(
                f"modules: {prefix!r} matches no BatchNorm layer; some are in {', '.join(tops)}"
            )
    wanted = {name for names in chosen.values() for name in names}
    return {name: layer for name, layer in every.items() if name in wanted}


class _Moments:
    """Pooled count, mean and M2 of a layer's inputs; float64, merged by Chan's formula."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.mean = torch.zeros_like(layer.running_mean, dtype=torch.float64)
        self.m2, self.within = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        self.count = self.calls = 0

    def add(self, x: Tensor) -> None:
        """Pool the values of one call, x (N, C, ...)."""
        count = x.numel() // x.shape[1] if x.shape[1] else 0
        if not count:
            return
        group = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        found = group_statistics(x.detach(), group, 1)
        delta, total = found.mean[0] - self.mean, self.count + count
        within = found.var[0] * count
        self.m2 += within + delta.square() * (self.count * count / total)
        self.mean += delta * (count / total)
        self.within += within
        self.count, self.calls = total, self.calls + 1

    def pack(self) -> Tensor:
        """(2 + 3C,) float64, sums that add up over ranks (see `grouped_batch_norm` on accuracy)."""
        counts = self.mean.new_tensor([self.count, self.calls])
        total = self.count * self.mean
        return torch.cat([counts, total, self.m2 + total * self.mean, self.within])

    def unpack(self, sums: Tensor) -> None:
        self.count, self.calls = (round(number) for number in sums[:2].tolist())
        total, square, self.within = sums[2:].chunk(3)
        self.mean = total / max(1, self.count)
        self.m2 = (square - total * self.mean).clamp(min=0)


def _pool_over_ranks(moments: list[_Moments]) -> None:
    """One collective for the whole model."""
    process_group = default_group()
    if process_group is None:
        return
    packed = [m.pack() for m in moments]
    sums = all_reduce_sum(torch.cat(packed), process_group)
    for found, part in zip(moments, sums.split([len(p) for p in packed]), strict=True):
        found.unpack(part)


def _write(name: str, layer: _BatchNorm, found: _Moments) -> LayerReport:
    old_mean, old_var = (b.double().cpu().clone() for b in (layer.running_mean, layer.running_var))
    new_mean, new_var, error = old_mean, old_var, torch.zeros_like(old_mean)
    if found.count > 1:
        var = found.m2 / (found.count - 1)
        layer.running_mean.copy_(found.mean)
        layer.running_var.copy_(var)
        if isinstance(layer, RoIBatchNorm2d):
            layer.ema_weight.fill_(1)
        between = (found.m2 - found.within).clamp(min=0)
        error = between / (found.count * max(1, found.calls - 1)) / var.clamp(min=1e-12)
        new_mean, new_var, error = found.mean.cpu(), var.cpu(), error.sqrt().cpu()
    return LayerReport(name, found.count, old_mean, old_var, new_mean, new_var, error)


@torch.no_grad()
def _forward_batches(model: nn.Module, loader: Iterable, num_iters: int, progress: bool) -> None:
    process_group = default_group()
    device = next(model.parameters()).device
    batches = iter(loader)
    hidden = not progress or rank(process_group) != 0
    for done in tqdm(range(num_iters), desc="PreciseBN", disable=hidden, leave=False):
        batch = next(batches, None)
        # All stop at the same batch: layers may be waiting for one another.
        ended = all_gather_int(int(batch is None), device, process_group)
        if any(ended):
            where = f" on rank {ended.index(1)}" if process_group is not None else ""
            raise ValueError(
                f"the loader ended{where} after {done} of num_iters = {num_iters} batches; the "
                "statistics are unchanged"
            )
        with EventStorage(0):  # Detectron2's models log in training
            model(batch)


@contextlib.contextmanager
def _collecting(
    model: nn.Module, layers: dict[str, _BatchNorm], moments: dict[str, _Moments], roi_source: str
) -> Iterator[None]:
    """The model in the mode of `roi_source`, the layers on mini-batch statistics and observed."""
    handles = []
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

            def observe(_, args: tuple, found: _Moments = moments[name]) -> None:
                found.add(args[0])

            handles.append(layer.register_forward_pre_hook(observe))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers and random number generators back as they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module in modes:
            if isinstance(module, WatchesRoIs):
                module.watch(module.training)
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
