"""Use a model and leave no trace."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ..layers import RoIBatchNorm2d
from ..layers.watching import WatchesRoIs


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put back, whatever happens inside, what running `model` changes.

    That is modes, buffers, layouts with their settings, what modules count by themselves, and the
    random number generators of Python, numpy, torch and the model's GPUs.
    """
    modules = list(model.modules())
    # Modes, momenta, and what models count by themselves, such as RetinaNet's loss normalizer.
    numbers = [{k: v for k, v in vars(m).items() if isinstance(v, int | float)} for m in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    cuda = {t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    on_cuda = [(device, torch.cuda.get_rng_state(device)) for device in cuda]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with contextlib.ExitStack() as stack:
            for layout in {m.layout for m in modules if isinstance(m, RoIBatchNorm2d)}:
                stack.enter_context(layout.undisturbed())
            yield
    finally:
        for module, before in zip(modules, numbers, strict=True):
            vars(module).update(before)
        for module in modules:
            if isinstance(module, WatchesRoIs):
                module.watch(module.training)
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for device, state in on_cuda:
            torch.cuda.set_rng_state(state, device)


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
