"""The three operations of a layer that `torch.compile` calls and does not look into.

A compiled head asks for its groups when it runs, not when it is compiled, as each forward has
groups of its own. So the operations are told which layer calls them, and ask the layer's layout as
the layer itself does without compilation. The work is the same; only the way in which autograd and
the compiler learn of it differs.
"""

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from .grouped_batch_norm import normalize_backward, normalize_forward
from .partition import Partition
from .running_statistics import update_running_statistics
from .steps.numbers import Coefficients, GroupStatistics, RunningStatistics
from .steps.plain_ops import accurate

if TYPE_CHECKING:
    from .roi_batch_norm import RoIBatchNorm2d

_LAYERS: "WeakValueDictionary[int, RoIBatchNorm2d]" = WeakValueDictionary()
_SPANS: dict[int, dist.ProcessGroup] = {}  # of layers whose groups span processes

_Optional = Tensor | None


def register_layer(layer: "RoIBatchNorm2d") -> None:
    """Let the operations find a layer by its `id`."""
    _LAYERS[id(layer)] = layer


def normalize_compiled(layer: "RoIBatchNorm2d", x: Tensor) -> Tensor:
    """Normalize as a layer does in training, by operations that can be compiled."""
    single_position = x.shape[2:].numel() == 1
    population = (layer.running_mean, layer.running_var) if single_position else (None, None)
    y: Tensor
    y, mean, var, count, *_ = torch.ops.bn_detect.normalize(
        x, layer.weight, layer.bias, *population, layer.eps, id(layer)
    )
    if layer.training and layer.track_running_stats:
        layer.last_finite = torch.ops.bn_detect.update_running(
            mean,
            var,
            count,
            layer.running_mean,
            layer.running_var,
            layer.ema_weight,
            layer.num_batches_tracked,
            layer.momentum,
        )
    return y


@torch.library.custom_op("bn_detect::normalize", mutates_args=())
def _normalize(
    x: Tensor,
    weight: _Optional,
    bias: _Optional,
    population_mean: _Optional,
    population_var: _Optional,
    eps: float,
    layer: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y, the statistics, and what the backward needs: coefficients, rows and groups."""
    partition = _LAYERS[layer]._partition(x)
    if partition.process_group is not None:
        _SPANS[layer] = partition.process_group
    else:
        _SPANS.pop(layer, None)
    population = None
    if population_mean is not None and population_var is not None:
        population = population_mean, population_var
    y, stats, by = normalize_forward(x, weight, bias, partition, eps, population)
    # The compiler must get tensors of its own: it may write into their memory afterwards.
    return (_like(y, x), *stats, torch.stack(by), partition.rows.clone(), partition.groups.clone())


@_normalize.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    groups, channels = torch.library.get_ctx().new_dynamic_size(), x.shape[1]
    table = x.new_empty((3, groups, channels), dtype=accurate(x))
    counts = x.new_empty((3, groups), dtype=torch.int64)
    return (
        torch.empty_like(x),
        torch.empty_like(table[0]),
        torch.empty_like(table[0]),
        torch.empty_like(counts[0]),
        table,
        x.new_empty((2, x.shape[0]), dtype=torch.int64),
        counts,
    )


@torch.library.custom_op("bn_detect::normalize_backward", mutates_args=())
def _normalize_backward(
    dy: Tensor,
    x: Tensor,
    weight: _Optional,
    bias: _Optional,
    needs_dx: bool,
    count: Tensor,
    table: Tensor,
    rows: Tensor,
    groups: Tensor,
    has_population: bool,
    layer: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; empty where there is none."""
    partition = Partition.of_tensors(rows, groups, _SPANS.get(layer))
    by = Coefficients(*table.unbind())
    dx, *affine = normalize_backward(x, dy, partition, by, count, has_population, needs_dx)
    dweight, dbias = (
        x.new_empty(0) if p is None else d.to(p.dtype, copy=True)
        for p, d in zip((weight, bias), affine, strict=True)
    )
    return x.new_empty(0) if dx is None else _like(dx, x), dweight, dbias


@_normalize_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: _Optional, bias: _Optional, needs_dx: bool, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = (
        x.new_empty(0) if t is None else torch.empty_like(t)
        for t in (x if needs_dx else None, weight, bias)
    )
    return dx, dweight, dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, population_mean, _, _, ctx.layer = inputs
    _, _, _, count, table, rows, groups = output
    ctx.has_population = population_mean is not None
    ctx.save_for_backward(x, weight, bias, count, table, rows, groups)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[_Optional, ...]:
    needs_dx = ctx.needs_input_grad[0]
    x, weight, bias, *others = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.bn_detect.normalize_backward(
        dy, x, weight, bias, needs_dx, *others, ctx.has_population, ctx.layer
    )
    return (
        dx if needs_dx else None,
        None if weight is None else dweight,
        None if bias is None else dbias,
        *[None] * 4,
    )


_normalize.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op(
    "bn_detect::update_running",
    mutates_args=("running_mean", "running_var", "ema_weight", "batches"),
)
def _update_running(
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    ema_weight: Tensor,
    batches: Tensor,
    momentum: float | None,
) -> Tensor:
    """Update the moving average; see `update_running_statistics`."""
    running = RunningStatistics(running_mean, running_var, ema_weight, batches)
    return update_running_statistics(running, GroupStatistics(mean, var, count), momentum).clone()


@_update_running.register_fake
def _(mean: Tensor, *_: Any) -> Tensor:
    return mean.new_empty((), dtype=torch.bool)


def _like(t: Tensor, x: Tensor) -> Tensor:
    """Return `t` with the strides that the compiler was told."""
    like = torch.empty_like(x)
    return t if t.stride() == like.stride() else like.copy_(t)
