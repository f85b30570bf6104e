"""Times of things that are compared with one another."""

import statistics
import time
from collections.abc import Callable

import torch


def interleaved(
    arms: dict[str, Callable[[], object]],
    repetitions: int,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call, by arm: A B C A B C ..., after one call of each that does not count.

    Load from outside that comes and goes then meets all arms alike.

    Args:
        ready: called before and after each call, to wait for a GPU or for the other ranks.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions + 1):
        for name, call in arms.items():
            ready()
            start = time.perf_counter()
            call()
            ready()
            if repetition:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def waiting_for(device: torch.device) -> Callable[[], object]:
    """For `ready`: waits for the work queued on a GPU."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def default_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ratios(ours: list[float], reference: list[float]) -> list[float]:
    """Within each repetition."""
    return [a / b for a, b in zip(ours, reference, strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    """Median (lower to upper quartile), for a table."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
