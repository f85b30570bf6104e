"""Context managers that run a model and restore its state afterwards."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ..layers.statistics import use_statistics


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore, whatever happens inside, everything that running `model` changes.

    That is modes, buffers, layouts with their settings, the counters of modules, and the random
    number generators of Python, numpy, torch and the model's GPUs.
    """
    modules = list(model.modules())
    # Modes, momenta, and counters such as RetinaNet's loss normalizer.
    numbers = [{k: v for k, v in vars(m).items() if isinstance(v, int | float)} for m in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    cuda = {t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    states = random.getstate(), np.random.get_state()
    # Layouts and hooks are restored last: hooks follow the modes.
    with use_statistics(model), torch.random.fork_rng(cuda, device_type="cuda"):
        try:
            yield
        finally:
            for module, before in zip(modules, numbers, strict=True):
                vars(module).update(before)
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer.copy_(value)
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the values of all buffers of `model` at the end, whatever happens inside."""
    before = {buffer: buffer.clone() for buffer in model.buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before.items():
                buffer.copy_(value)
