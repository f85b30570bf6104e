"""The numbers that the steps of a layer pass on: statistics, coefficients, moving averages."""

from typing import NamedTuple

from torch import Tensor


class GroupStatistics(NamedTuple):
    """Moments of each group over all ranks that it spans.

    mean, var: (num_groups, C), var biased (divided by count); count: (num_groups,) int64, values
    per channel (RoIs x positions). An empty group has 0 everywhere.
    """

    mean: Tensor
    var: Tensor
    count: Tensor  # type: ignore[assignment]  # it hides tuple.count, which nobody needs


class Coefficients(NamedTuple):
    """The numbers that normalize each group, (x - center) * scale + bias; (num_groups, C) each.

    invstd: 1 / sqrt(variance + eps), so scale is invstd * weight.
    """

    center: Tensor
    invstd: Tensor
    scale: Tensor


class RunningStatistics(NamedTuple):
    """Buffers of a layer, updated in place.

    mean, var: (C,); weight: (), the share of groups that were not empty lately; batches: (),
    int64, the number of updates.
    """

    mean: Tensor
    var: Tensor
    weight: Tensor
    batches: Tensor
