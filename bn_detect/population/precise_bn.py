"""Population statistics of BatchNorm by PreciseBN (Wu & Johnson 2021, Section 3.1).

With fixed weights, many mini-batches are forwarded and their moments pooled. The moving average of
training, which this replaces, is noisy and belongs to weights that have changed since.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from ..distributed.collectives import all_gather_int, default_group, rank
from ..layers import LevelBatchNorm2d, RoIBatchNorm2d
from ..layers.normalization_batch import require_one_of
from ..layers.statistics import use_statistics
from ..layers.watching import WatchesRoIs
from .bn_layers import running_statistics, select_bn_layers, unwrapped
from .moments import BatchedMoments, pool_over_ranks
from .observe import num_populations, observe
from .report import LayerReport, PopulationReport
from .undisturbed import undisturbed

logger = logging.getLogger(__name__)

ROI_SOURCES = ("train", "test")


def update_population_stats(
    model: nn.Module,
    loader: Iterable[Any],
    num_iters: int,
    *,
    modules: Sequence[str] | None = None,
    roi_source: str = "train",
    images_per_group: int | None = 0,
    forward: Callable[[Any], Any] | None = None,
    progress: bool = True,
) -> PopulationReport:
    """Replace the running statistics of BN layers by those of the population of `loader`.

    `num_iters` batches per rank are forwarded with fixed weights, while the selected layers
    normalize with mini-batch statistics. The new statistics are the mean and the unbiased variance
    of all values that a layer got, over all its calls and all ranks: every value counts once, and
    the variance between batches is included. Every rank ends with the same buffers. A collective;
    each rank calls it with data of its own.

    Afterwards parameters, momentum, modes, hooks, other buffers and the states of the random number
    generators are as before; if anything is raised, the statistics are too.

    Args:
        model: any module with BatchNorm1d/2d/3d, SyncBatchNorm, RoIBatchNorm2d, LevelBatchNorm2d
            or NaiveSyncBatchNorm, wrapped in DistributedDataParallel or not. A LevelBatchNorm2d
            with a population of each level normalizes each level by itself, as it will do with its
            new statistics, whatever it does in training.
        loader: batches that `forward` takes; those of Detectron2 are lists of dicts. With
            `roi_source` "train" they need ground truth.
        modules: dotted prefixes of the layers to update, such as ["roi_heads.box_head"]; None: all.
            The others normalize as the mode of `roi_source` says.
        roi_source: the RoIs that reach the heads. "train": sampled as in training (25% foreground
            at most, ground truth added), with dropout at work; "test": the proposals and detections
            of inference.
        images_per_group: the normalization batch of RoI layouts during the pass. 0: all images of
            a batch, over all ranks (the paper recommends a large batch, whatever that of training
            is); N: each N consecutive images of a rank; None: as the layouts are set. Layers
            without a layout normalize with the batch of their rank.
        forward: runs the model on a batch; None: `model(batch)`. A torchvision detector in training
            mode needs `lambda batch: model(*batch)`.
        progress: show a progress bar on rank 0.

    Returns:
        A report with one row per layer and population. Layers that got no values, or values that
        are not finite, keep their statistics; the report lists them and a warning names them.

    Raises:
        ValueError: `modules` match no BN layer, the model has none, `roi_source` is not known,
            `num_iters` is below 1, `images_per_group` below 0, or the loader ends early on any rank
            (then on every rank).
    """
    check_pass(num_iters, roi_source, images_per_group)
    model = unwrapped(model)
    layers = select_bn_layers(model, modules)
    moments = {
        name: [
            BatchedMoments(layer.num_features, running_statistics(layer)[0].device)
            for _ in range(num_populations(layer))
        ]
        for name, layer in layers.items()
    }
    all_moments = [m for of_layer in moments.values() for m in of_layer]
    # Layers need their groups in evaluation mode too, in which heads do not move RoIs.
    groups = use_statistics(model, exchange="statistics", **_groups(images_per_group))
    with undisturbed(model), groups, _observing(model, layers, moments, roi_source):
        _forward_batches(forward or model, loader, num_iters, all_moments, progress)

    pool_over_ranks(all_moments, default_group())
    rows = [row for name, layer in layers.items() for row in _write(name, layer, moments[name])]
    report = PopulationReport(tuple(rows), num_iters)
    for what, names in (
        ("got no values", report.not_reached),
        ("got values that are not finite", report.not_finite),
    ):
        if names:
            logger.warning(
                "PreciseBN: these layers %s and keep their statistics: %s", what, ", ".join(names)
            )
    return report


def check_pass(num_iters: int, roi_source: str, images_per_group: int | None) -> None:
    """Raise ValueError for a value that `update_population_stats` does not take."""
    require_one_of("roi_source", roi_source, ROI_SOURCES)
    if num_iters < 1:
        raise ValueError(f"num_iters is {num_iters}; it must be at least 1")
    if images_per_group is not None and images_per_group < 0:
        raise ValueError(
            f"images_per_group is {images_per_group}; it must be a number of images, 0 for all of "
            "a batch, or None for the groups of training"
        )


def _groups(images_per_group: int | None) -> dict[str, Any]:
    """Return the fields of `NormalizationBatch` that a pass changes."""
    if images_per_group is None:
        return {}
    if images_per_group == 0:
        return {"batch": "global", "virtual_workers": 1}
    return {"batch": "images", "images_per_group": images_per_group, "virtual_workers": 1}


def detectron2_events() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which Detectron2's models can log, as they do in training mode.

    It does nothing where Detectron2 was not imported, and so no model of it can exist.
    """
    events = sys.modules.get("detectron2.utils.events")
    # Iteration 1: at iteration 0 Detectron2's models draw pictures.
    return contextlib.nullcontext() if events is None else events.EventStorage(1)


@contextlib.contextmanager
def _observing(
    model: nn.Module,
    layers: dict[str, _BatchNorm],
    moments: dict[str, list[BatchedMoments]],
    roi_source: str,
) -> Iterator[None]:
    """Put the model into the mode of `roi_source`, and collect the moments of what `layers` get.

    The layers normalize with mini-batch statistics. `undisturbed` restores modes and layouts.
    """
    with contextlib.ExitStack() as stack:
        if roi_source == "test":
            model.eval()
        elif not model.training:
            model.train()
        for module in model.modules():
            if isinstance(module, WatchesRoIs):
                module.watch(True)  # the layers need their layouts in inference mode too
        for name, layer in layers.items():
            stack.callback(setattr, layer, "momentum", layer.momentum)
            if isinstance(layer, LevelBatchNorm2d) and layer.population == "level":
                stack.callback(setattr, layer, "batch", layer.batch)
                layer.batch = "level"
            layer.training = True
            for handle in observe(layer, moments[name]):
                stack.enter_context(handle)
        yield


@torch.no_grad()
def _forward_batches(
    forward: Callable[[Any], Any],
    loader: Iterable[Any],
    num_iters: int,
    moments: list[BatchedMoments],
    progress: bool,
) -> None:
    process_group = default_group()
    device = moments[0].within.device
    batches, end = iter(loader), object()
    hidden = not progress or rank(process_group) != 0
    for done in tqdm(range(num_iters), desc="PreciseBN", disable=hidden, leave=False):
        batch = next(batches, end)
        # All ranks stop at the same batch: layers may be waiting for one another.
        ended = all_gather_int(int(batch is end), device, process_group)
        if any(ended):
            where = f" on rank {ended.index(1)}" if process_group is not None else ""
            raise ValueError(
                f"the loader ended{where} after {done} of num_iters = {num_iters} batches; the "
                "statistics are unchanged"
            )
        with detectron2_events():
            forward(batch)
        for each in moments:
            each.end_batch()


@torch.no_grad()
def _write(name: str, layer: _BatchNorm, moments: list[BatchedMoments]) -> Iterator[LayerReport]:
    """Replace the statistics of a layer by `moments`, one per population."""
    if len(moments) == 1:
        yield _write_one(name, *running_statistics(layer), moments[0])
    else:
        assert isinstance(layer, LevelBatchNorm2d)
        for level, each in enumerate(moments):
            yield _write_one(f"{name}.level{level}", *layer.statistics_of(level), each)
    if isinstance(layer, RoIBatchNorm2d) and moments[0].total.count > 1:
        layer.ema_weight.fill_(1)


def _write_one(name: str, mean: Tensor, var: Tensor, moments: BatchedMoments) -> LayerReport:
    """Replace the values of the (C,) buffers `mean` and `var`, and report old and new ones."""
    pooled = moments.total
    old_mean, old_var = (b.double().cpu().clone() for b in (mean, var))
    new_mean, new_var = old_mean, old_var
    unbiased = pooled.m2 / max(pooled.count - 1, 1)
    # Judged as the buffers hold them: a finite float64 may be too large for float32.
    finite = all(bool(t.isfinite().all()) for t in (pooled.mean.to(mean), unbiased.to(var)))
    if pooled.count > 1 and finite:
        mean.copy_(pooled.mean)
        var.copy_(unbiased)
        new_mean, new_var = pooled.mean.cpu(), unbiased.cpu()
    error = moments.standard_error().cpu()
    return LayerReport(name, pooled.count, old_mean, old_var, new_mean, new_var, error, finite)
