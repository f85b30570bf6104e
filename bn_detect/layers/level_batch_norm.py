"""BatchNorm that several feature levels share, as in a head over the levels of an FPN."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.collectives import default_group
from .grouped_batch_norm import check_values
from .level_moments import level_batch_norm, union
from .normalization_batch import require_one_of
from .steps.numbers import GroupStatistics

LEVEL_CHOICES = ("shared", "level")
MOVING_AVERAGES = ("in_turn", "union")


class LevelBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for inputs from several levels (Wu & Johnson 2021, Section 5.3).

    Call it with the inputs of all levels, or with those of one level and its number. `state_dict`
    has the keys of the parent. `weight` and `bias` have shape (C,) where `affine` is "shared", and
    else (num_levels, C), a row for each level; `running_mean` and `running_var` follow `population`
    in the same way (see `fill_levels`).

    The moving average takes one step with each call, with one exception: with batch "level" and
    population "shared", `moving_average` "in_turn" takes a step for each level, in their order.
    That is what one BatchNorm does when it is called on level after level, as in the authors' code:
    all levels have the same weight, and a call forgets as much as num_levels steps do. Statistics
    that are not finite are left out.

    Attributes:
        last_finite: bool tensor, whether the statistics of the last training batch were all finite.

    Args:
        num_features: C.
        num_levels: number of levels, such as those of an FPN.
        batch: what normalizes in training: "shared", the statistics of all levels together, or
            "level", those of each level by itself.
        population: which statistics are kept for inference: "shared", one set for all levels, or
            "level", one for each.
        affine: "shared", one weight and bias for all levels, or "level", one for each.
        moving_average: how a shared population follows batches of each level; other choices do
            not depend on it. "in_turn": as above; "union": the statistics of all levels together,
            in which every position counts once, as with batch "shared".
        synchronized: use the statistics of all ranks in training (SyncBN); each rank must call the
            layer, forward and backward.
        eps, momentum, device, dtype: as in the parent.

    Raises:
        ValueError: a value that is not one of those above.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        num_levels: int,
        *,
        batch: str = "shared",
        population: str = "shared",
        affine: str = "shared",
        moving_average: str = "in_turn",
        synchronized: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("batch", batch), ("population", population), ("affine", affine)):
            require_one_of(name, value, LEVEL_CHOICES)
        require_one_of("moving_average", moving_average, MOVING_AVERAGES)
        if num_levels < 1:
            raise ValueError(f"num_levels is {num_levels}; it must be at least 1")
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        self.num_levels, self.batch, self.population = num_levels, batch, population
        self.moving_average, self.synchronized = moving_average, synchronized
        self.last_finite: Tensor | None = None
        shape = (num_levels, num_features)
        if affine == "level":
            self.weight = nn.Parameter(self.weight.new_ones(shape))
            self.bias = nn.Parameter(self.bias.new_zeros(shape))
        if population == "level":
            self.running_mean = self.running_mean.new_zeros(shape)
            self.running_var = self.running_var.new_ones(shape)

    def forward(  # type: ignore[override]  # takes the inputs of all levels at once
        self, x: Tensor | Sequence[Tensor], level: int | None = None
    ) -> Tensor | list[Tensor]:
        """Normalize the inputs of all levels, or of one.

        Args:
            x: (N, C, H, W) for each level, in their order, N may be 0; or of one level.
            level: in [0, num_levels), where x is one tensor. Not allowed in training with batch
                "shared", which needs all levels at once.

        Returns:
            The normalized inputs, like x.

        Raises:
            ValueError: there are more or fewer inputs than levels, a level is missing or does not
                exist, inputs have other shapes, or one level came where all are needed.
        """
        inputs = self.by_level(x, level)
        if self.training:
            if level is not None and self.batch == "shared":
                raise ValueError(
                    "batch is 'shared': in training the inputs of all levels must come at once, "
                    f"not those of level {level}"
                )
            ys = self._normalize_batch(inputs)
        else:
            ys = [self._normalize_population(part, d) for d, part in inputs.items()]
        return ys if level is None else ys[0]

    def by_level(self, x: Tensor | Sequence[Tensor], level: int | None = None) -> dict[int, Tensor]:
        """Return the inputs of a call by level; arguments and errors are those of `forward`."""
        if (level is None) == isinstance(x, Tensor):
            raise ValueError(
                "LevelBatchNorm2d takes the list of the inputs of all levels, or one tensor and "
                f"its level; got {type(x).__name__} with level {level}"
            )
        if level is None:
            inputs = dict(enumerate(x))
            if len(inputs) != self.num_levels:
                raise ValueError(f"{len(inputs)} inputs for {self.num_levels} levels")
        else:
            if not 0 <= level < self.num_levels:
                raise ValueError(f"level is {level}; it must be in [0, {self.num_levels})")
            inputs = {level: x}
        for part in inputs.values():
            if part.dim() < 2 or part.shape[1] != self.num_features:
                raise ValueError(
                    f"LevelBatchNorm2d expects (N, {self.num_features}, ...); "
                    f"got {tuple(part.shape)}"
                )
            check_values(part, self.eps, "LevelBatchNorm2d")
        return inputs

    def statistics_of(self, level: int) -> tuple[Tensor, Tensor]:
        """Return views of the running mean and variance, (C,) each, that normalize a level."""
        return _row(self.running_mean, level), _row(self.running_var, level)

    def _normalize_population(self, x: Tensor, level: int) -> Tensor:
        weight, bias = _row(self.weight, level), _row(self.bias, level)
        return F.batch_norm(x, *self.statistics_of(level), weight, bias, False, 0.0, self.eps)

    def _normalize_batch(self, inputs: dict[int, Tensor]) -> list[Tensor]:
        ys, stats = level_batch_norm(
            list(inputs.values()),
            [_row(self.weight, level) for level in inputs],
            [_row(self.bias, level) for level in inputs],
            shared=self.batch == "shared",
            eps=self.eps,
            process_group=default_group() if self.synchronized else None,
        )
        self._update_running_statistics(list(inputs), stats)
        return ys

    @torch.no_grad()
    def _update_running_statistics(self, levels: list[int], stats: GroupStatistics) -> None:
        in_turn = self.batch == "level" and self.moving_average == "in_turn"
        if self.population == "shared" and not in_turn:
            stats, levels = union(stats), levels[:1]
        wide = torch.promote_types(self.running_var.dtype, torch.float32)
        all_finite = []
        for level, mean, var, count in zip(levels, *stats[:2], stats.count.double(), strict=True):
            if level == levels[0] or self.population == "shared":
                self.num_batches_tracked.add_(1)
            momentum = self.momentum
            if momentum is None:  # cumulative average, as in torch
                momentum = 1.0 / float(self.num_batches_tracked)
            unbiased = var * (count / (count - 1).clamp(min=1))
            mean, unbiased = mean.to(wide), unbiased.to(wide)
            finite = (mean.isfinite() & unbiased.isfinite()).all()
            all_finite.append(finite)
            # A single value has no unbiased variance.
            step = momentum * (finite & (count > 1)).to(mean)
            for buffer, new in zip(self.statistics_of(level), (mean, unbiased), strict=True):
                new = torch.lerp(buffer.to(wide), torch.where(finite, new, 0.0), step.to(wide))
                buffer.copy_(new)
        self.last_finite = torch.stack(all_finite).all()

    def extra_repr(self) -> str:
        affine = LEVEL_CHOICES[self.weight.dim() - 1]
        return (
            f"{self.num_features}, num_levels={self.num_levels}, batch={self.batch}, "
            f"population={self.population}, affine={affine}, moving_average={self.moving_average}, "
            f"eps={self.eps}, momentum={self.momentum}, synchronized={self.synchronized}"
        )


def fill_levels(model: nn.Module, state: dict[str, Any]) -> None:
    """Make a state with shared statistics or parameters fit layers that have them per level.

    Where a `LevelBatchNorm2d` of `model` has (num_levels, C) and `state` has (C,), each level gets
    a copy, in place. Nothing else is changed.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, LevelBatchNorm2d):
            continue
        prefix = f"{name}." if name else ""
        for part in ("weight", "bias", "running_mean", "running_var"):
            value, own = state.get(prefix + part), getattr(layer, part)
            if torch.is_tensor(value) and value.dim() == 1 and own.dim() == 2:
                state[prefix + part] = value.expand(len(own), -1).clone()


def _row(values: Tensor, level: int) -> Tensor:
    """Return the row of a level, or the values themselves where all levels share them."""
    return values[level] if values.dim() == 2 else values
