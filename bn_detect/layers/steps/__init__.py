"""The steps of `grouped_batch_norm`, in plain tensor operations and as Triton kernels."""

import importlib.util
from types import ModuleType

from torch import Tensor

from . import plain_ops


def ops_for(x: Tensor) -> ModuleType:
    """Return the steps for x: Triton's kernels on a GPU that has them, else plain operations."""
    if x.is_cuda and importlib.util.find_spec("triton") is not None:
        from . import triton_ops  # which exists for GPUs only

        if triton_ops.works_on(x.device):
            return triton_ops
    return plain_ops
