"""Tools of the benchmarks: times of arms side by side, peak memory, and several ranks."""

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from ..runtime.launch import stay_on_loopback
from ..runtime.signals import Interrupted, Request, ctrl_c_held, requests


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    repetitions: int,
    ready: Callable[[], object] = lambda: None,
    *,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of a call in each repetition, by arm: A B C A B C ...; the first does not count.

    Load from outside that comes and goes then meets all arms alike.

    Args:
        ready: called before and after each repetition, to wait for a GPU or for the other ranks.
        calls: of an arm in a repetition, one after the other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions + 1):
        for name, call in arms.items():
            ready()
            start = clock()
            for _ in range(calls):
                call()
            ready()
            if repetition:
                seconds[name].append((clock() - start) / calls)
    return seconds


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Let PyTorch use so many CPU threads during the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def waiting_for(device: torch.device) -> Callable[[], object]:
    """Wait for the work that is queued on a GPU; for `ready`."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def default_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ratios(ours: list[float], reference: list[float]) -> list[float]:
    """Return the ratio of two arms in each repetition."""
    return [a / b for a, b in zip(ours, reference, strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    """Median (lower to upper quartile), for a table."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors on `device` at once during `call`, beyond those before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        peak = max(peak, held)
    return peak


def on_ranks(measure: Callable, ranks: int, *args: Any) -> Any:
    """Call `measure(device, *args)` on `ranks` new processes; returns what rank 0 returned.

    Args:
        measure: a module-level function; its result on rank 0 must be picklable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a rank failed.
    """

    def end(request: Request) -> None:
        for process in workers.processes:
            process.kill()
        raise Interrupted(request.number)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        with ctrl_c_held():
            workers = mp.spawn(_rank, args=(measure, ranks, args, folder), nprocs=ranks, join=False)
            stack.enter_context(requests(then=end))
        while not workers.join():
            pass
        return torch.load(Path(folder, "result.pt"), weights_only=False)


def ranks_possible() -> int:
    """Return how many ranks are possible: one for each GPU, or 4 on CPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 4


def _rank(rank: int, measure: Callable, ranks: int, args: tuple, folder: str) -> None:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
        stay_on_loopback()
    store = dist.FileStore(str(Path(folder, "store")), ranks)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=ranks)
    result = measure(device, *args)
    if rank == 0:
        torch.save(result, Path(folder, "result.pt"))
    dist.barrier()
    dist.destroy_process_group()
