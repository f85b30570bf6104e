"""BatchNorm for RoI heads, with the normalization batch as an explicit argument."""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import compiled
from .grouped_batch_norm import check_values, partitioned_batch_norm
from .layouts import RoILayout
from .partition import Partition
from .running_statistics import update_running_statistics
from .steps.numbers import GroupStatistics, RunningStatistics

logger = logging.getLogger(__name__)


class RoIBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that normalizes over the groups of RoIs of a `RoILayout`.

    It has the parameters, buffers and `state_dict` keys of its parent. With population statistics
    (in eval mode, unless the layout asks for mini-batch statistics) it computes what the parent
    computes, and traces and scripts like it. Without running statistics (`track_running_stats`
    False) it normalizes in eval mode with the statistics of this worker's RoIs, as its parent does,
    or where the layout needs the image of each RoI, of those of `test_images_per_group` images.

    Moving average: the mean over the non-empty groups of (mean, unbiased variance) enters with
    weight `momentum` times the share of groups that are non-empty, against the buffer's own weight
    `ema_weight`, which an empty group lets fade. Where no group is ever empty this is torch's
    update. Its result is linear in what each group contributes, so a mean over ranks weighted by
    `ema_weight` (`average_running_statistics`) gives the same numbers however the groups were
    spread over ranks. A group whose statistics are not finite counts as empty.

    Attributes:
        last_finite: bool tensor, whether the statistics of the last training batch were all finite.
        plain: the class that `revert_roi_batchnorm` makes of it.

    Args:
        layout: layout of the RoIs; None makes a new one, whose batch is the RoIs of this worker.
        Others: as in `torch.nn.BatchNorm2d`. Inputs are (R, C, ...), R may be 0.
    """

    ema_weight: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        layout: RoILayout | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.layout = layout or RoILayout()
        self.plain: type[_BatchNorm] = nn.BatchNorm2d
        self._told_lonely = False
        self.last_finite: Tensor | None = None
        # Derived state: 1 whenever ranks were averaged, which they are before every checkpoint.
        ema_weight = torch.ones((), device=device, dtype=torch.float64)
        self.register_buffer("ema_weight", ema_weight, persistent=False)
        compiled.register_layer(self)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            if self.training:
                raise RuntimeError(
                    "a scripted RoIBatchNorm2d has population statistics only; call eval(), or "
                    "train the model that was scripted"
                )
        elif not self._uses_population():
            return self._forward_groups(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def __prepare_scriptable__(self) -> "RoIBatchNorm2d":
        """Refuse to be scripted where eval mode needs groups of RoIs, which TorchScript has not."""
        if self.running_mean is None or self.layout.settings.test_stats == "minibatch":
            raise RuntimeError(
                f"{self.layout.name}: a RoIBatchNorm2d with mini-batch statistics at inference "
                "cannot be scripted; use test_stats 'population' (MODEL.ROI_BN.TEST_STATS)"
            )
        return self

    @torch.jit.unused
    def _uses_population(self) -> bool:
        if self.training or self.running_mean is None:
            return False
        return self.layout.settings.test_stats == "population"

    @torch.jit.unused
    def _forward_groups(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        check_values(x, self.eps, "RoIBatchNorm2d")
        if torch.jit.is_tracing():
            raise RuntimeError(
                f"{self.layout.name}: a RoIBatchNorm2d with mini-batch statistics cannot be "
                "traced, for the groups of the example's RoIs would be frozen; call eval() "
                "first, with test_stats 'population' (MODEL.ROI_BN.TEST_STATS)"
            )
        if torch.compiler.is_compiling():
            return compiled.normalize_compiled(self, x)
        partition = self._partition(x)
        population = None
        if partition.may_hold_single_values(x.shape[2:].numel()) and self.running_mean is not None:
            assert self.running_var is not None
            population = self.running_mean, self.running_var
        y, mean, var, count = partitioned_batch_norm(
            x, self.weight, self.bias, partition, self.eps, population
        )
        # Where only the GPU knows, nothing is said: asking would make the host wait.
        known = partition.rois is not None or (x.device.type == "cpu" and bool((count == 1).any()))
        if population is not None and known and not self._told_lonely:
            self._told_lonely = True
            logger.warning(
                "A normalization batch of %s held a single value per channel; it was normalized "
                "with population statistics and did not update them. Said once.",
                self.layout.name,
            )
        if self.training and self.track_running_stats:
            self._update_running_statistics(GroupStatistics(mean, var, count))
        return y

    @torch.jit.unused
    def _partition(self, x: Tensor) -> Partition:
        if self.training or self.layout.settings.needs_images:
            return self.layout.partition(x.shape[0], x.device, self.training, id(self))
        # No running statistics: as in torch, those of this worker's batch.
        return Partition.one_group(len(x), x.device)

    def _update_running_statistics(self, stats: GroupStatistics) -> None:
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None and var is not None and batches is not None
        running = RunningStatistics(mean, var, self.ema_weight, batches)
        self.last_finite = update_running_statistics(running, stats, self.momentum)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        compiled.register_layer(self)

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        if self.track_running_stats and hasattr(self, "ema_weight"):
            self.ema_weight.fill_(1)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.ema_weight.is_meta and self.running_mean is not None:  # assigned
            self.ema_weight = torch.ones_like(self.ema_weight, device=self.running_mean.device)
        self.ema_weight.fill_(1)

    def __del__(self) -> None:
        layout = self.__dict__.get("layout")
        if isinstance(layout, RoILayout):
            layout.layer_is_gone(self)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"RoIBatchNorm2d expects (R, {self.num_features}, ...); got {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, batch={self.layout.settings.batch}"
