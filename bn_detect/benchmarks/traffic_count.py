"""Bytes that each rank sends and receives, counted at the collectives."""

import contextlib
from collections.abc import Callable, Iterator

import torch.distributed as dist
from torch import Tensor

from .traffic_model import Collective

# What the package and its references call: (input, output) among the positional arguments.
_CALLS: dict[str, tuple[str, Callable[..., tuple[Tensor, list[Tensor]]]]] = {
    "all_reduce": ("all_reduce", lambda tensor: (tensor, [tensor])),
    "all_gather": ("all_gather", lambda every, tensor: (tensor, every)),
    "all_to_all_single": ("all_to_all", lambda out, tensor, *splits: (tensor, [out])),
}


@contextlib.contextmanager
def counted() -> Iterator[list[Collective]]:
    """Collect this process's collectives of `torch.distributed`, in the order they are called.

    Those that run inside DistributedDataParallel are not seen: they are the same for every batch.
    """
    calls: list[Collective] = []
    originals = {name: getattr(dist, name) for name in _CALLS}

    def counting(name: str) -> Callable:
        kind, ends = _CALLS[name]

        def call(*args, **kwargs):
            source, out = ends(*args)
            calls.append(
                Collective(
                    kind,
                    dist.get_world_size(kwargs.get("group")),
                    source.nbytes,
                    sum(tensor.nbytes for tensor in out),
                )
            )
            return originals[name](*args, **kwargs)

        return call

    try:
        for name in _CALLS:
            setattr(dist, name, counting(name))
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
