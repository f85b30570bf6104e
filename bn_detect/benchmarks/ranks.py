"""Run a measurement on several ranks: gloo on CPU, NCCL with a GPU each."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(measure: Callable, ranks: int, *args: Any) -> Any:
    """Call `measure(device, *args)` on `ranks` new processes; returns what rank 0 returned.

    Args:
        measure: a module-level function; its result on rank 0 must be picklable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(measure, ranks, args, folder), nprocs=ranks)
        return torch.load(Path(folder, "result.pt"), weights_only=False)


def ranks_possible() -> int:
    """As many ranks as there are GPUs; any number on CPU, where 4 are enough."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 4


def _rank(rank: int, measure: Callable, ranks: int, args: tuple, folder: str) -> None:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
        if "lo" in (name for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(str(Path(folder, "store")), ranks)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=ranks)
    result = measure(device, *args)
    if rank == 0:
        torch.save(result, Path(folder, "result.pt"))
    dist.barrier()
    dist.destroy_process_group()
